import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { coppice, coppiceJson } from "./cli.js";
import { copyModel, workshop, writeTask } from "./workshop.js";

const work = workshop();
const stats = join(work, "stats.safetensors");
let model: string;
let task: string;

beforeAll(async () => {
  model = copyModel(join(work, "model"));
  task = writeTask(join(work, "task.jsonl"), 8);
  const sample = ["--sample", "logits,inputs,grams", "--sample-tokens", "64"];
  await coppiceJson(["calibrate", model, "--data", task, ...sample, "--out", stats]);
});

interface Written {
  plan: { layers: { experts: number[]; topK?: number; skip?: object; router?: object }[] };
  layers: { count: number; average: number }[];
}

/** What the command says, and the same plan in its file. */
async function planned(name: string, args: readonly string[]): Promise<Written> {
  const out = join(work, name);
  const said = (await coppiceJson([...args, "--stats", stats, "--out", out])) as unknown as Written;
  expect(JSON.parse(readFileSync(out, "utf8"))).toEqual(said.plan);
  return said;
}

describe("allocate", () => {
  it("shares out experts by number or bytes", async () => {
    const even = await planned("even.json", ["allocate", "experts", model, "--keep", "3", "--uniform"]);
    expect(even.plan.layers.map(({ experts }) => experts.length)).toEqual(even.layers.map(() => 3));
    const uneven = ["allocate", "experts", model, "--keep", "2.5", "--layout", "runtime"];
    const { layers, plan } = await planned("uneven.json", uneven);
    const total = layers.reduce((sum, { count }) => sum + count, 0);
    expect(total).toBe(Math.floor(2.5 * layers.length));
    expect(plan.layers.map(({ experts }) => experts.length)).toEqual(layers.map(({ count }) => count));
    const folder = join(work, "even");
    await coppiceJson(["apply", model, "--plan", join(work, "even.json"), "--out", folder]);
    expect(await coppiceJson(["inspect", folder])).toMatchObject({ experts: 3 });
  });

  it("shares out top-k", async () => {
    const args = ["allocate", "top-k", model, "--average", "1.5", "--layout", "runtime"];
    const { layers, plan } = await planned("top-k.json", args);
    expect(layers.reduce((sum, { count }) => sum + count, 0)).toBe(Math.floor(1.5 * layers.length));
    expect(plan.layers.map(({ topK }) => topK)).toEqual(layers.map(({ count }) => count));
  });

  it("fits skip rules, also under a plan", async () => {
    const args = ["allocate", "skip", model, "--rule", "top-p", "--average", "1.5"];
    const { layers } = await planned("skip.json", args);
    for (const { average } of layers) expect(Math.abs(average - 1.5)).toBeLessThan(0.1);
    await planned("kept.json", ["allocate", "experts", model, "--keep", "3", "--uniform"]);
    const under = await planned("skip-kept.json", [...args, "--plan", join(work, "kept.json")]);
    expect(under.plan.layers.every(({ experts, skip }) => experts.length === 3 && skip)).toBe(true);
    const shown = await coppiceJson(["eval", model, "--task", task, "--plan", join(work, "skip-kept.json")]);
    expect(shown["samples"]).toBe(8);
  });

  it("refuses early what cannot be exported, and says what can", async () => {
    const out = join(work, "none.json");
    const refused = async (args: readonly string[], text: RegExp) => {
      const { code, stderr } = await coppice(["allocate", ...args, "--out", out]);
      expect([code, stderr]).toEqual([2, expect.stringMatching(text)]);
    };
    await refused(
      ["experts", model, "--keep", "3"],
      /COPPICE_PLAN_EXPORT.*mixtral.*--uniform, or --layout runtime/s,
    );
    await refused(["experts", model, "--uniform", "--stats", stats], /either by --keep or by --bytes/);
    await refused(["experts", model, "--keep", "1", "--uniform", "--stats", stats], /COPPICE_PLAN_KEEP/);
    await refused(["top-k", model, "--average", "1"], /COPPICE_PLAN_EXPORT.*one top-k.*--layout runtime/s);
    await refused(["skip", model, "--rule", "ratio", "--stats", stats], /--rule ratio needs --average/);
    await refused(["skip", model, "--average", "1.5", "--stats", stats], /--average is for the rules/);
    await refused(["skip", model, "--layers", "1", "--stats", stats], /--layers is for the rule odp/);
    const many = ["experts", model, "--keep", "99", "--layout", "runtime", "--stats", stats];
    await refused(many, /COPPICE_PLAN_KEEP.*keep=99 is not possible/s);
    await refused(["skip", model, "--stats", stats, "--data", task], /either --stats or --data/);
    expect(existsSync(out)).toBe(false);
    const nowhere = ["allocate", ...many, "--out", join(work, "no-folder", "plan.json")];
    expect((await coppice(nowhere)).stderr).toMatch(/there is no folder .* to write plan\.json to/);
  });
});

describe("repair", () => {
  it("writes the plan with new rows, and the errors before and after", async () => {
    await planned("pruned.json", ["allocate", "experts", model, "--keep", "2", "--uniform"]);
    const args = ["repair", model, "--plan", join(work, "pruned.json"), "--rounds", "2"];
    const { plan, layers } = (await planned("repaired.json", args)) as unknown as {
      plan: Written["plan"];
      layers: { before: Errors; after: Errors; steps: unknown[] }[];
    };
    expect(layers.some(({ steps }) => steps.length > 0)).toBe(true);
    layers.forEach(({ before, after, steps }, i) => {
      expect(after.heldOut).toBeLessThanOrEqual(before.heldOut);
      expect(plan.layers[i]?.router !== undefined).toBe(steps.length > 0);
    });
    const folder = join(work, "repaired");
    await coppiceJson(["apply", model, "--plan", join(work, "repaired.json"), "--out", folder]);
    expect(await coppiceJson(["verify", model, folder])).toMatchObject({ equal: true });
    const unlimited = ["--check-limit", "4", "--stats", stats, "--out", join(work, "none.json")];
    expect((await coppice([...args, ...unlimited])).stderr).toMatch(/--check-limit needs --check/);
  });

  it("keeps the new rows of layers that bring predictions nearer to the whole model's", async () => {
    const args = ["repair", model, "--plan", join(work, "pruned.json"), "--check", task, "--stats", stats];
    const out = join(work, "checked.json");
    const { plan, check } = (await coppiceJson([...args, "--out", out])) as unknown as {
      plan: Written["plan"];
      check: { before: number; after: number; layers: { layer: number; accepted: boolean }[] };
    };
    expect(check.after).toBeLessThanOrEqual(check.before);
    const kept = check.layers.filter(({ accepted }) => accepted).map(({ layer }) => layer);
    expect(plan.layers.flatMap(({ router }, layer) => (router ? [layer] : []))).toEqual(kept);
    const scored = await coppiceJson(["eval", model, "--task", task, "--plan", out, "--metric", "kl"]);
    expect(scored["value"]).toBeCloseTo(check.after, 9);
    const text = await coppice([...args, "--out", join(work, "again.json")]);
    expect(text.stdout).toMatch(/held out before.*KL +kept.*to the whole model/s);
  });

  it("says how to collect the sample that it needs", async () => {
    const bare = join(work, "bare.safetensors");
    await coppiceJson(["calibrate", model, "--data", task, "--out", bare]);
    const out = join(work, "missing.json");
    await planned("for-repair.json", ["allocate", "experts", model, "--keep", "3", "--uniform"]);
    const args = ["repair", model, "--plan", join(work, "for-repair.json"), "--stats", bare, "--out", out];
    expect((await coppice(args)).stderr).toMatch(
      /COPPICE_STATS_MISSING: router repair needs a sample.*calibrate --sample logits,inputs,grams/s,
    );
    expect(existsSync(out)).toBe(false);
  });
});

interface Errors {
  heldOut: number;
}
