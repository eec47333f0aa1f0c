import { createPlan, type LayerTap, type RunRequest, type Tap } from "@coppice/core";
import { type RandomModelShape, randomModel } from "@coppice/plugin-kit";
import { describe, expect, test } from "vitest";
import type { CpuRunner } from "../src/runner.js";
import type { UnitLimits } from "../src/units.js";
import { maxDifference } from "./max-difference.js";
import { open, positions, sequences } from "./open-runner.js";

const tiny: UnitLimits = { tokens: 6, scores: 24, everyBytes: 1 };

const latent = { rank: 8, nopeDim: 6, rotaryDim: 4, valueDim: 5 };
const chunked = { chunk: 4, plainLayers: [1], temperature: { floor: 2, scale: 0.3 } };
const models: Record<string, RandomModelShape> = {
  plain: {},
  latent: { latent, interleaved: true, slidingWindow: 5 },
  chunked,
  "following the length": { scaling: { kind: "dynamic", factor: 2, originalContext: 5 } },
};

describe("limits of a unit", () => {
  const spareModels = { ...models, "sinks and a window": { sinks: true, slidingWindow: 3, qkNorm: true } };
  test.each(Object.entries(spareModels))("%s: tokens are spared alike in small units", async (_, shape) => {
    const model = randomModel({ ...shape, layers: 3, experts: 6, topK: 3 });
    const layers = [0, 1, 2].map((layer) => ({
      layer,
      experts: [0, 1, 2, 3, 4, 5],
      skip: { rule: "ratio", threshold: 0.95, spare: 0.3 } as const,
    }));
    const plan = createPlan(model.model, layers);
    const whole = await open(model);
    const split = await open(model, tiny);
    const results = [];
    for (const { runner } of [whole, split]) {
      const spared: number[][] = [[], [], []];
      const tap: Tap = {
        fields: ["routing"],
        onLayer({ layer, rows, topK, slots = new Int32Array() }) {
          for (const [i, row] of rows.entries()) {
            const choices = slots.subarray(i * topK, (i + 1) * topK);
            if (choices.every((slot) => slot >= 0)) spared[layer]?.push(row);
          }
        },
      };
      const request: RunRequest = { sequences, positions, boundaries: [1], plan };
      const { logits, boundaries } = await runner.run(request);
      await runner.run({ ...request, tap });
      results.push({ logits, boundary: boundaries.get(1), spared });
      await runner.dispose();
    }
    const [a, b] = results;
    expect(maxDifference(a?.logits, b?.logits)).toBeLessThan(1e-4);
    expect(maxDifference(a?.boundary, b?.boundary)).toBeLessThan(1e-4);
    expect(a?.spared).toEqual(b?.spared);
    // 4 of 11 tokens, 2 of 4 and 6, 1 of 2, none of one alone, and those whose gates are all alike.
    for (const rows of a?.spared ?? []) expect(rows.length).toBeGreaterThanOrEqual(9);
    for (const rows of a?.spared ?? []) expect(rows.length).toBeLessThan(20);
  });

  test.each([{}, { router: { order: "topk-sigmoid", scalesInput: true } }] as RandomModelShape[])(
    "what all experts of %j compute is shown in parts that fit, and the same",
    async (shape) => {
      const model = randomModel({ ...shape, layers: 2, experts: 3, mlpBias: true });
      const every = Uint8Array.from({ length: 24 }, (_, row) => (row % 3 === 1 ? 0 : 1));
      const shown = async (limits?: UnitLimits) => {
        const { runner } = await open(model, limits);
        const seen = [0, 1].map(() => ({
          sizes: [] as number[],
          rows: [] as number[],
          output: [] as number[],
          everyOutput: [] as number[],
          everyUnit: [] as number[],
        }));
        const fields = ["output", "everyOutput", "everyUnit"] as const;
        const onLayer = ({ layer, rows, everyRows = new Int32Array(), ...shown }: LayerTap) => {
          const of = seen[layer];
          of?.sizes.push(everyRows.length);
          of?.rows.push(...Array.from(everyRows, (row) => rows[row] as number));
          for (const field of fields) of?.[field].push(...(shown[field] ?? []));
        };
        const { boundaries } = await runner.run({
          sequences,
          boundaries: [2],
          tap: { fields, every, onLayer },
        });
        await runner.dispose();
        return { seen, result: boundaries.get(2) };
      };
      const whole = await shown();
      const wanted = [...every.keys()].filter((row) => every[row] === 1);
      expect(whole.seen.map(({ sizes, rows }) => [sizes, rows])).toEqual([
        [[wanted.length], wanted],
        [[wanted.length], wanted],
      ]);
      // Room for two tokens: three experts, hidden and unit values of 4 bytes.
      const { hiddenSize, layers } = model.model;
      const width =
        layers[0]?.feedForward.kind === "moe" ? (layers[0].feedForward.experts[0]?.width ?? 0) : 0;
      const everyBytes = 2 * 3 * (hiddenSize + width) * 4;
      const parts = await shown({ tokens: 64, scores: 2048, everyBytes });
      for (const [layer, of] of parts.seen.entries()) {
        expect(Math.max(...of.sizes)).toBe(2);
        expect(of.rows).toEqual(wanted);
        for (const field of ["output", "everyOutput", "everyUnit"] as const) {
          const [found, expected] = [of[field], whole.seen[layer]?.[field] ?? []].map((values) =>
            Float32Array.from(values),
          );
          expect(maxDifference(found, expected)).toBeLessThan(1e-5);
        }
      }
      expect(maxDifference(parts.result, whole.result)).toBeLessThan(1e-5);
    },
  );

  test.each(Object.entries(models))("%s: small units give the same as one", async (_, shape) => {
    const model = randomModel({ ...shape, layers: 3 });
    const whole = await open(model);
    const split = await open(model, tiny);
    const request: RunRequest = { sequences, positions, boundaries: [1, 3] };
    const [a, b] = [await whole.runner.run(request), await split.runner.run(request)];
    expect(maxDifference(a.logits, b.logits)).toBeLessThan(1e-5);
    for (const layer of [1, 3]) {
      // Values of 14 to 20, of which float32 rounds away up to 1e-6: so do sums in another order, some eight times that.
      const [one, other] = [a.boundaries.get(layer), b.boundaries.get(layer)] as [Float32Array, Float32Array];
      const largest = one.reduce((max, value) => Math.max(max, Math.abs(value)), 0);
      expect(maxDifference(one, other)).toBeLessThan(1e-6 * largest);
    }
    const hidden = a.boundaries.get(1) as Float32Array;
    const middle = { sequences, from: 1, to: 2, hidden, boundaries: [2] };
    const [c, d] = [await whole.runner.run(middle), await split.runner.run(middle)];
    expect(maxDifference(c.boundaries.get(2), d.boundaries.get(2))).toBeLessThan(1e-5);
    const inputs = async (runner: CpuRunner, batch: readonly Int32Array[]) => {
      const seen: number[][] = [[], [], []];
      await runner.run({
        sequences: batch,
        tap: { fields: ["input"], onLayer: ({ layer, input }) => seen[layer]?.push(...(input ?? [])) },
      });
      return seen;
    };
    // A tap keeps the order of the request, so the tokens of all units stand in packed order.
    const together = await inputs(split.runner, sequences);
    const alone = await Promise.all(sequences.map((ids) => inputs(whole.runner, [ids])));
    for (const [layer, values] of together.entries()) {
      const expected = alone.flatMap((seen) => seen[layer] as number[]);
      expect(maxDifference(Float32Array.from(values), Float32Array.from(expected))).toBeLessThan(1e-5);
    }
    await whole.runner.dispose();
    await split.runner.dispose();
  });

  test.each([
    { slidingWindow: 5 },
    { latent },
    chunked,
    { sinks: true, qkNorm: true, normAfterRotary: true, headDim: 6 },
  ])("%j: a cache filled in small units, by pieces of any length, gives the same", async (shape) => {
    const model = randomModel({ layers: 2, ...shape });
    const { runner } = await open(model, tiny);
    const { logits } = await runner.run({ sequences, positions });
    const { vocabSize } = model.model;
    const longest = Math.max(...sequences.map((ids) => ids.length));
    for (const step of [1, 2, 5]) {
      const cache = runner.createCache(sequences.length);
      for (let begin = 0; begin < longest; begin += step) {
        // A sequence that has ended goes on with some token; its logits are not compared.
        const pieces = sequences.map((ids) =>
          begin < ids.length ? ids.slice(begin, begin + step) : Int32Array.of(0),
        );
        const wanted = pieces.map((ids) => Int32Array.from(ids.keys()));
        const result = await runner.run({ sequences: pieces, positions: wanted, cache });
        let row = 0;
        let start = 0;
        for (const [s, ids] of sequences.entries()) {
          const count = pieces[s]?.length ?? 0;
          if (begin < ids.length) {
            const part = (values: Float32Array | undefined, from: number) =>
              values?.subarray(from * vocabSize, (from + count) * vocabSize);
            expect(maxDifference(part(result.logits, row), part(logits, start + begin))).toBeLessThan(1e-5);
          }
          row += count;
          start += ids.length;
        }
      }
      cache.dispose();
    }
    await runner.dispose();
  });
});
