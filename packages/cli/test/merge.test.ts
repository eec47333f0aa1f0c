import { existsSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { coppiceHere, coppiceJson } from "./cli.js";
import { copyModel, workshop, writeTask } from "./workshop.js";

const work = workshop();
const stats = join(work, "stats.safetensors");
const more = join(work, "more.safetensors");
const task = join(work, "task.jsonl");
let model: string;

beforeAll(async () => {
  model = copyModel(join(work, "model"));
  const args = ["calibrate", model, "--data", writeTask(task, 4), "--out"];
  await coppiceJson([...args, stats]);
  await coppiceJson([...args, more, "--with", "everyOutputSum,outputCosine", "--sample", "units"]);
});

interface MergedLayer {
  readonly merge?: number[][];
  readonly units?: (object[] | null)[];
}

describe("merge", () => {
  it.each([
    ["m-smoe", []],
    ["m-smoe", ["--set", "align=activations"]],
    ["logit-clusters", ["--set", "align=weights"]],
    ["hc-smoe", ["--set", "linkage=ward"]],
    ["ream", ["--set", "capacity=4"]],
    ["dern", ["--set", "threshold=0"]],
    ["average", ["--set", "weights=frequency"]],
  ])("%s %j writes what its plan says, with fewer experts", async (merger, settings) => {
    const out = join(work, [merger, ...settings].join("-"));
    const args = [
      "merge",
      model,
      "--keep",
      "3",
      "--merger",
      merger,
      ...settings,
      "--stats",
      more,
      "--out",
      out,
    ];
    const merged = await coppiceJson(args);
    expect(await coppiceJson(["inspect", out])).toMatchObject({ experts: 3, bytes: merged["bytesAfter"] });
    expect(await coppiceJson(["verify", model, out, "--tensors"])).toMatchObject({ equal: true });
    const { layers } = merged["plan"] as { layers: MergedLayer[] };
    const several = (slots: readonly (readonly unknown[] | null)[] | undefined) =>
      slots?.some((slot) => (slot?.filter(Boolean).length ?? 0) > 1);
    expect(layers.every(({ merge, units }) => several(units) || several(merge))).toBe(true);
    const aligned = merger === "dern" || merger === "ream" || settings.some((set) => set.startsWith("align"));
    expect(layers.every(({ units }) => (units !== undefined) === aligned)).toBe(true);
  });

  it("computes what was evaluated, and says it all without writing", async () => {
    const out = join(work, "verified");
    const merge = [
      "merge",
      model,
      "--keep",
      "3",
      "--merger",
      "dern",
      "--set",
      "threshold=0",
      "--stats",
      more,
    ];
    const dry = await coppiceJson([...merge, "--out", out, "--dry-run"]);
    expect(existsSync(out)).toBe(false);
    expect({ ...(await coppiceJson([...merge, "--out", out])), dryRun: true }).toEqual(dry);
    expect(await coppiceJson(["verify", model, out])).toMatchObject({ equal: true });
  });

  it("collects what the merger needs", async () => {
    const out = join(work, "collected");
    const args = ["merge", model, "--keep", "3", "--merger", "ream", "--set", "capacity=4", "--out", out];
    const collected = await coppiceJson([...args, "--data", task, "--dry-run"]);
    expect(collected["plan"]).toEqual((await coppiceJson([...args, "--stats", more, "--dry-run"]))["plan"]);
  });

  it("reads no data for a merger that needs none", async () => {
    const out = join(work, "average");
    const merged = await coppiceJson(["merge", model, "--keep", "3", "--merger", "average", "--out", out]);
    expect(merged).toMatchObject({ merger: "average" });
    expect(await coppiceJson(["inspect", out])).toMatchObject({ experts: 3 });
  });

  it("says what is missing, with the options of calibrate that collect it", async () => {
    const out = join(work, "none");
    const args = ["merge", model, "--keep", "3", "--out", out];
    const stderr = async (...rest: string[]) => (await coppiceHere([...args, ...rest])).stderr;
    expect(await stderr()).toMatch(/COPPICE_USAGE: m-smoe needs statistics: give either --stats or --data/);
    expect(await stderr("--merger", "m-smo", "--stats", stats)).toMatch(/COPPICE_PLUGIN_NOT_FOUND.*m-smoe/s);
    expect(await stderr("--merger", "hc-smoe", "--stats", stats)).toMatch(
      /COPPICE_STATS_MISSING: hc-smoe needs everyOutputSum.*coppice calibrate --with everyOutputSum/s,
    );
    expect(await stderr("--merger", "ream", "--stats", stats)).toMatch(
      /needs outputCosine and a sample of tokens with units.*calibrate --with outputCosine --sample units/s,
    );
    expect(await stderr("--set", "align=both", "--stats", stats)).toMatch(/calibrate --sample units/);
    expect(await stderr("--set", "align=both,", "--stats", stats)).toMatch(/COPPICE_PLUGIN_OPTIONS.*align/s);
    const few = await coppiceHere(["merge", model, "--keep", "1", "--stats", stats, "--out", out]);
    expect(few.stderr).toMatch(/COPPICE_PLAN_KEEP/);
    expect(existsSync(out)).toBe(false);
  });
});
