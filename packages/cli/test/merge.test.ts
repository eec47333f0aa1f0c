import { existsSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { coppice, coppiceJson } from "./cli.js";
import { copyModel, workshop, writeTask } from "./workshop.js";

const work = workshop();
const stats = join(work, "stats.safetensors");
let model: string;

beforeAll(async () => {
  model = copyModel(join(work, "model"));
  await coppiceJson(["calibrate", model, "--data", writeTask(join(work, "task.jsonl"), 4), "--out", stats]);
});

describe("merge", () => {
  it.each(["m-smoe", "logit-clusters"])(
    "%s writes what its plan says, with fewer experts",
    async (merger) => {
      const out = join(work, merger);
      const args = ["merge", model, "--keep", "3", "--merger", merger, "--stats", stats, "--out", out];
      const dry = await coppiceJson([...args, "--dry-run"]);
      expect(existsSync(out)).toBe(false);
      const merged = await coppiceJson(args);
      expect({ ...merged, dryRun: true }).toEqual(dry);
      expect(await coppiceJson(["inspect", out])).toMatchObject({ experts: 3, bytes: merged["bytesAfter"] });
      expect(await coppiceJson(["verify", model, out])).toMatchObject({ equal: true });
      expect(await coppiceJson(["verify", model, out, "--tensors"])).toMatchObject({ equal: true });
      const { layers } = merged["plan"] as { layers: { merge: number[][] }[] };
      expect(layers.every(({ merge }) => merge.some((row) => row.filter(Boolean).length > 1))).toBe(true);
    },
  );

  it("says what is missing", async () => {
    const out = join(work, "none");
    const args = ["merge", model, "--keep", "3", "--out", out];
    expect((await coppice(args)).stderr).toMatch(
      /COPPICE_USAGE: m-smoe needs statistics: give either --stats or --data/,
    );
    const unknown = await coppice([...args, "--merger", "m-smo", "--stats", stats]);
    expect(unknown.stderr).toMatch(/COPPICE_PLUGIN_NOT_FOUND.*m-smoe/s);
    expect((await coppice(["merge", model, "--keep", "1", "--stats", stats, "--out", out])).stderr).toMatch(
      /COPPICE_PLAN_KEEP/,
    );
    expect(existsSync(out)).toBe(false);
  });
});
