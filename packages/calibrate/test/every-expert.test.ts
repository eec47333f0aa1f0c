import {
  type CollectedStatistics,
  type CollectOptions,
  collectStatistics,
  decodeStatistics,
  encodeStatistics,
  mergeStatistics,
  scaleStatistics,
} from "@coppice/calibrate";
import { type ExtraField, extraFields, type LayerStatistics } from "@coppice/core";
import { type MemoryModel, memoryModel, slowForward } from "@coppice/plugin-kit";
import { describe, expect, test } from "vitest";
import { expectNear, load, models, randomSequences } from "./models.js";

const fields = ["unitSquares", "everyOutputSum", "outputGram", "outputCosine"] as const;

/** The sums over all experts as their definitions say, in float64. */
function slowSums(source: MemoryModel, sequences: readonly Int32Array[]) {
  const results = sequences.map((ids) => slowForward(source, [...ids]));
  return (results[0]?.layers ?? []).map((_, i) => {
    const tokens = results.flatMap(({ layers }) => {
      const layer = layers[i] as (typeof layers)[number];
      return layer.choices.map((choices, t) => ({ choices, experts: layer.every(t) }));
    });
    const add = (values: readonly (readonly number[])[]) =>
      (values[0] ?? []).map((_, at) => values.reduce((sum, row) => sum + (row[at] as number), 0));
    const dot = (a: readonly number[], b: readonly number[]) =>
      a.reduce((sum, value, at) => sum + value * (b[at] as number), 0);
    const pairs = (value: (a: readonly number[], b: readonly number[]) => number) =>
      add(tokens.map(({ experts }) => experts.flatMap((a) => experts.map((b) => value(a.output, b.output)))));
    return {
      unitSquares: add(
        tokens.map(({ choices, experts }) =>
          experts.flatMap(({ units }, expert) =>
            units.map((unit) => (choices.some(({ slot }) => slot === expert) ? unit ** 2 : 0)),
          ),
        ),
      ),
      everyOutputSum: add(tokens.map(({ experts }) => experts.flatMap(({ output }) => output))),
      outputGram: pairs(dot),
      outputCosine: pairs((a, b) => {
        const norms = Math.hypot(...a) * Math.hypot(...b);
        return norms === 0 ? 0 : dot(a, b) / norms;
      }),
    } satisfies Record<(typeof fields)[number], number[]>;
  });
}

describe.each(Object.keys(models))("sums over all experts of %s", (name) => {
  test("are what their definitions say, and add up", async () => {
    const source = await (models[name] as () => Promise<MemoryModel>)();
    const sequences = randomSequences(source.model.vocabSize, [5, 2, 7, 1]);
    await using runner = await load(source);
    const collect = (part: Int32Array[], extras: readonly ExtraField[]) =>
      collectStatistics({ runner, sequences: part, name: "test", tokenBudget: 8, extras });
    const whole = await collect(sequences, extraFields);
    const expected = slowSums(source, sequences);
    const sum = mergeStatistics(
      await collect(sequences.slice(0, 1), extraFields),
      await collect(sequences.slice(1), extraFields),
    );
    whole.layers.forEach((layer, i) => {
      for (const field of fields) {
        const values = layer[field] ?? [];
        expectNear(field, values, expected[i]?.[field] ?? [], 1e-5);
        expectNear(field, sum.layers[i]?.[field] ?? [], values, 1e-12);
      }
      // The diagonal of the Gram matrix over all tokens holds at least those of the tokens that were routed there.
      layer.outputNorm2?.forEach((norm2, expert) => {
        const all = layer.outputGram?.[expert * (layer.count.length + 1)] as number;
        expect(all).toBeGreaterThanOrEqual(norm2 * (1 - 1e-6));
      });
    });
    expect(await decodeStatistics(encodeStatistics(whole), "s")).toEqual(whole);
    const half = scaleStatistics(whole, 0.5).layers[0] as LayerStatistics;
    expect(half.outputGram).toEqual(whole.layers[0]?.outputGram?.map((value) => value / 2));
  });
});

describe("sums over all experts", () => {
  test("are the same whichever of them are collected together", async () => {
    const source = await (models["many-experts"] as () => Promise<MemoryModel>)();
    const sequences = randomSequences(source.model.vocabSize, [6, 3]);
    await using runner = await load(source);
    const collect = (extras: readonly ExtraField[]) =>
      collectStatistics({ runner, sequences, name: "test", extras });
    const all: CollectedStatistics = await collect(fields);
    for (const field of fields) {
      const alone = await collect([field]);
      expect(alone.layers.map((layer) => layer[field])).toEqual(all.layers.map((layer) => layer[field]));
    }
  });

  test("name an expert whose output is not finite, although no token chose it", async () => {
    const source = await (models["many-experts"] as () => Promise<MemoryModel>)();
    await using runner = await load(source);
    const sequences = [Int32Array.of(1)];
    const { layers } = await collectStatistics({ runner, sequences, name: "test" });
    const unused = layers[1]?.count.indexOf(0) as number;
    const moe = source.model.layers[1]?.feedForward;
    const down = moe?.kind === "moe" ? (moe.experts[unused]?.down.name ?? "") : "";
    const tensors = new Map(source.tensors);
    tensors.set(down, new Float32Array((tensors.get(down) as Float32Array).length).fill(3e38));
    await using damaged = await load(memoryModel(source.model, tensors));
    const collect = (options: Partial<CollectOptions>) =>
      collectStatistics({ runner: damaged, sequences, name: "test", ...options });
    await expect(collect({})).resolves.toBeDefined();
    for (const options of [
      { extras: ["everyOutputSum"] },
      { extras: ["outputGram"] },
      { sample: { limit: 1, with: ["grams"] } },
    ] as const) {
      await expect(collect(options)).rejects.toMatchObject({
        code: "COPPICE_BACKEND_FAILED",
        message: expect.stringContaining("of layer 1"),
        details: { layer: 1 },
      });
    }
    await expect(collect({ extras: ["everyOutputSum"] })).rejects.toMatchObject({
      details: { expert: unused },
    });
  });
});
