import {
  createPlan,
  type LayerMemory,
  type LayerPlan,
  moeLayers,
  packBfloat16,
  Rng,
  type RunRequest,
  type RunResult,
} from "@coppice/core";
import { type RandomModelShape, randomModel } from "@coppice/plugin-kit";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { open, positions, sequences } from "./open-runner.js";
import { randomPlan } from "./random-plan.js";
import { anyKind, plain, randomBatch } from "./random-shapes.js";

const bits = ({ logits, boundaries }: RunResult) => [logits, ...boundaries].map((values) => values ?? []);

describe("a memory of a layer", () => {
  test.each([
    ["plain layers", plain],
    ["layers of every kind", anyKind],
  ])("%s: any plans that start there give the bits of runs without it", async (_, shapes) => {
    await fc.assert(
      fc.asyncProperty(
        shapes as fc.Arbitrary<RandomModelShape & { seed: number }>,
        fc.boolean(),
        async (shape, small) => {
          const loaded = randomModel({ ...shape, topK: 2 });
          const { model } = loaded;
          const rng = Rng.fromSeed(shape.seed);
          const { runner } = await open(
            loaded,
            small ? { tokens: 12, scores: 60, everyBytes: 1 } : undefined,
          );
          const batch = randomBatch(model, rng);
          const from = rng.integer(model.layers.length);
          const start =
            from > 0 &&
            (await runner.run({
              sequences: batch,
              plan: randomPlan(model, rng),
              boundaries: [from],
              to: from,
            }));
          const hidden = start ? start.boundaries.get(from) : undefined;
          const request: RunRequest = {
            sequences: batch,
            positions: batch.map((ids) => Int32Array.from(ids.keys()).filter(() => rng.bernoulli(0.5))),
            ...(hidden && { from, hidden }),
          };
          const memory = runner.createMemory();
          let held = 0;
          for (let i = 0; i < 8; i++) {
            const plan = i === 3 ? undefined : randomPlan(model, rng);
            const planned = { ...request, ...(plan && { plan }), boundaries: i % 2 ? [from + 1] : [] };
            // The last layer runs other rows when its boundary is wanted.
            const same = from + 1 < model.layers.length || i % 2 === 0;
            const fresh = await runner.run(planned);
            const known = await runner.run(same ? { ...planned, memory } : planned);
            expect(bits(known)).toEqual(bits(fresh));
            expect(known.tokenLayers).toBe(fresh.tokenLayers);
            expect(known.expertTokens).toBeLessThanOrEqual(fresh.expertTokens as number);
            expect(memory.bytes).toBeGreaterThanOrEqual(held);
            held = memory.bytes;
          }
          await runner.dispose();
        },
      ),
      { numRuns: 12, seed: 1 },
    );
  });

  test("spares experts that were swapped in before, and counts those that run", async () => {
    const loaded = randomModel({ layers: 2, experts: 6, topK: 2, hidden: 16 });
    const { runner } = await open(loaded);
    const memory = runner.createMemory();
    const rows = 16;
    const work = async (experts: number[], change: Pick<LayerPlan, "merge" | "down"> = {}) => {
      const layer = { layer: 0, experts, ...change };
      const plan = createPlan(loaded.model, [layer]);
      return (await runner.run({ sequences, plan, boundaries: [2], memory })).expertTokens;
    };
    const second = 2 * rows;
    // Equal beginnings are one row each, and the second layer runs all choices every time.
    expect(await work([0, 1, 2])).toBe(2 * rows + second);
    const first = memory.bytes;
    // Attention's two results and an output per choice.
    expect(first).toBe(4 * rows * 16 * 4);
    expect(await work([2, 0, 1])).toBe(second);
    expect(await work([0, 1])).toBeLessThan(2 * rows + second);
    expect(await work([3, 4])).toBe(2 * rows + second);
    expect(await work([3, 4])).toBe(second);
    expect(await work([0, 1])).toBe(second);
    for (const experts of [
      [0, 2],
      [1, 2],
      [1, 3],
      [2, 5],
      [0, 3, 5],
    ])
      await work(experts);
    // Merged and changed experts are the plan's own; they run each time and are not kept.
    const held = memory.bytes;
    const merge = [
      [0.5, 0.5, 0, 0, 0, 0],
      [0, 0, 1, 0, 0, 0],
    ];
    const merged = await work([0, 2], { merge });
    expect(merged).toBe(rows + second);
    expect(await work([0, 2], { merge })).toBe(merged);
    const width = moeLayers(loaded.model)[0]?.feedForward.experts[0]?.width as number;
    const size = 16 * width;
    const down = packBfloat16(new Float32Array(2 * size).fill(0.5, size));
    expect(await work([0, 2], { down })).toBe(rows + second);
    expect(memory.bytes).toBe(held);
    memory.dispose();
    expect(memory.bytes).toBe(0);
    await runner.dispose();
  });

  test("of something else is refused", async () => {
    const { runner } = await open(randomModel({ layers: 3 }));
    const other = await open(randomModel({ layers: 3 }));
    const memory = runner.createMemory();
    const { boundaries } = await runner.run({ sequences, boundaries: [1], memory });
    const hidden = boundaries.get(1) as Float32Array;
    const refused = async (request: RunRequest, message: string, code = "COPPICE_USAGE") => {
      await expect(runner.run(request)).rejects.toMatchObject({
        code,
        message: expect.stringContaining(message),
      });
    };
    const usual = { sequences, positions, memory };
    await refused({ ...usual, from: 1, hidden }, "the memory is of layer 0");
    await refused({ ...usual, sequences: sequences.slice(1), positions: positions.slice(1) }, "rows");
    await refused({ ...usual, memory: other.runner.createMemory() }, "another runner");
    await refused({ ...usual, tap: { fields: [], onLayer() {} } }, "together with a tap");
    await refused({ ...usual, cache: runner.createCache(sequences.length) }, "together with a cache");
    const stranger: LayerMemory = { bytes: 0, dispose() {} };
    await refused({ ...usual, memory: stranger }, "another runner");
    memory.dispose();
    await refused(usual, "disposed", "COPPICE_BACKEND_DISPOSED");
    await Promise.all([runner.dispose(), other.runner.dispose()]);
    expect(() => runner.createMemory()).toThrow(
      expect.objectContaining({ code: "COPPICE_BACKEND_DISPOSED" }),
    );
  });
});
