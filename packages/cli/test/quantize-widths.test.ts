import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { coppiceHere, coppiceJson } from "./cli.js";
import { copyModel, workshop, writeTask } from "./workshop.js";

const work = workshop();
const model = copyModel(join(work, "model"));
const task = writeTask(join(work, "task.jsonl"), 4);
const planFile = join(work, "widths.json");
const common = ["--group", "16", "--backend", "reference"];

interface Choice {
  readonly bytes: number;
  readonly budget: number;
  readonly matrices: readonly { readonly name: string; readonly bits: number }[];
  readonly dropped: readonly { readonly layer: number; readonly experts: readonly number[] }[];
  readonly sensitivity: { readonly matrices: readonly { readonly name: string; readonly expert?: number }[] };
}

const readChoice = (path: string): Choice => JSON.parse(readFileSync(path, "utf8"));

describe("quantize with a budget", () => {
  it("measures once, and chooses within any budget from then on", async () => {
    const out = join(work, "q3");
    const args = ["quantize", model, ...common, "--average-bits", "3", "--data", task];
    const written = await coppiceJson([...args, "--plan-out", planFile, "--out", out]);
    const { bytes, budget, matrices, sensitivity } = readChoice(planFile);
    expect(bytes).toBeLessThanOrEqual(budget);
    expect(written["choice"]).toMatchObject({ bytes, budget, optimal: true, dropped: [] });
    const bits = new Map(matrices.map((matrix) => [matrix.name, matrix.bits]));
    for (const { name, expert } of sensitivity.matrices) {
      if (expert === undefined) expect(bits.get(name)).toBeGreaterThanOrEqual(4);
    }
    const formats = written["matrices"] as { module: string; format: { bits: number } }[];
    expect(formats).toHaveLength(matrices.length);
    for (const { module, format } of formats) expect(format.bits).toBe(bits.get(`${module}.weight`));
    // Half of the weights at 2 and half at 4 bits would take the budget, exactly.
    const sizes = await Promise.all(
      ["2", "4"].map(async (width) => {
        const folder = join(work, `all-${width}`);
        const ends = ["--head-bits", width, "--embedding-bits", width];
        const one = await coppiceJson([
          "quantize",
          model,
          "--group",
          "16",
          "--bits",
          width,
          ...ends,
          "--out",
          folder,
        ]);
        return one["bytesAfter"] as number;
      }),
    );
    const others = (written["bytesAfter"] as number) - bytes;
    expect(budget).toBe(((sizes[0] as number) + (sizes[1] as number)) / 2 - others);
    expect(await coppiceJson(["eval", out, "--task", task, "--backend", "reference"])).toMatchObject({
      samples: 4,
    });
  });

  it("drops experts where that costs least, as many in every layer, within a size", async () => {
    const out = join(work, "dropped");
    const limit = 66_000;
    const again = join(work, "again.json");
    const args = ["quantize", model, ...common, "--bytes", String(limit), "--widths", "0,2,4,8"];
    const written = await coppiceJson([
      ...args,
      "--sensitivity",
      planFile,
      "--plan-out",
      again,
      "--out",
      out,
    ]);
    expect(written["bytesAfter"]).toBeLessThanOrEqual(limit);
    const { dropped, matrices, sensitivity } = readChoice(again);
    const counts = new Set(dropped.map(({ experts }) => experts.length));
    expect(counts.size).toBe(1);
    const [count = 0] = counts;
    expect(count).toBeGreaterThan(0);
    expect(await coppiceJson(["inspect", out])).toMatchObject({ experts: 8 - count });
    // Experts keep their widths under their new numbers.
    const gone = new Map(dropped.map(({ layer, experts }) => [layer, experts]));
    const formats = written["matrices"] as {
      module: string;
      layer?: number;
      expert?: number;
      format: { bits: number };
    }[];
    expect(formats).toHaveLength(matrices.filter(({ bits }) => bits > 0).length);
    for (const { module, layer, expert, format } of formats) {
      const kept = [0, 1, 2, 3, 4, 5, 6, 7].filter((i) => !gone.get(layer as number)?.includes(i));
      const name =
        expert === undefined ? module : module.replace(`experts.${expert}.`, `experts.${kept[expert]}.`);
      const at = sensitivity.matrices.findIndex((matrix) => matrix.name === `${name}.weight`);
      expect(matrices[at]?.bits).toBe(format.bits);
    }
    expect(readdirSync(work).filter((name) => name.startsWith("."))).toEqual([]);
  });

  it("follows the program of MC-MoE", async () => {
    const out = join(work, "mc");
    const args = [
      "quantize",
      model,
      ...common,
      "--average-bits",
      "4",
      "--preset",
      "mc-moe",
      "--sensitivity",
      planFile,
    ];
    const written = await coppiceJson([...args, "--out", out]);
    const formats = written["matrices"] as { layer?: number; expert?: number; format: { bits: number } }[];
    for (const layer of [0, 1]) {
      const bits = formats
        .filter((one) => one.layer === layer && one.expert !== undefined)
        .map(({ format }) => format.bits);
      expect(new Set(bits)).toContain(8);
      expect(new Set(bits)).toContain(4);
      expect(bits.reduce((a, b) => a + b, 0)).toBeLessThanOrEqual(4 * bits.length);
    }
  });

  const faults: [string, string[], string][] = [
    ["a budget without data", ["--average-bits", "3"], "has to be measured on text"],
    ["two budgets", ["--average-bits", "3", "--bytes", "1MB"], "either --average-bits or --bytes"],
    ["--bits beside a budget", ["--average-bits", "3", "--bits", "4"], "--bits"],
    ["a head that stays beside a budget", ["--average-bits", "3", "--head-bits", "keep"], "needs --bits"],
    ["a plan file without a budget", ["--plan-out", join(work, "x.json")], "--plan-out needs --average-bits"],
    ["a size below that of all else", ["--bytes", "1000", "--data", task], "nothing fits 1000 bytes"],
    [
      "a size that is too small",
      ["--bytes", "20000", "--sensitivity", planFile],
      "the smallest choice takes",
    ],
    [
      "an average below the fewest bits, before anything is measured",
      ["--average-bits", "1", "--data", join(work, "never-read.jsonl")],
      "the smallest choice takes",
    ],
    ["widths that nothing executes", ["--average-bits", "3", "--widths", "3"], "expected one of 0, 2, 4, 8"],
    ["dropping alone", ["--average-bits", "3", "--widths", "0"], "expected one or more of 2, 4, 8"],
    ["a preset for bytes", ["--bytes", "1MB", "--preset", "mc-moe"], "shares out --average-bits"],
    ["a table that is none", ["--average-bits", "3", "--sensitivity", task], "JSON"],
    [
      "groups that do not divide a row",
      ["--average-bits", "3", "--data", task, "--group", "128"],
      "do not divide",
    ],
  ];
  for (const [what, args, message] of faults) {
    it(`refuses ${what} and writes nothing`, async () => {
      const out = join(work, "none");
      const { code, stderr } = await coppiceHere([
        "quantize",
        model,
        "--out",
        out,
        ...common.slice(2),
        ...args,
        ...(args.includes("--group") ? [] : common.slice(0, 2)),
      ]);
      expect(code).toBe(2);
      expect(stderr).toContain(message);
      expect(existsSync(out)).toBe(false);
    });
  }
});
