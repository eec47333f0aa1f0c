import { allocate, measureTopK, topKChoices, topKPlan } from "@coppice/allocate";
import { reference } from "@coppice/backend-reference";
import { createPlan, createRegistry, moeLayers, parsePlan, RunEmitter } from "@coppice/core";
import { type MemoryModel, randomModel, sampleShapes, slowForward } from "@coppice/plugin-kit";
import { describe, expect, test } from "vitest";

async function load({ model, weights }: MemoryModel) {
  const backend = await createRegistry([reference]).create("backend", "reference", {}, undefined);
  return backend.load({ model, weights });
}

/** What the routed experts of a layer add with k per token, in float64. */
function slowOutput(source: MemoryModel, ids: readonly number[], index: number, topK: number): number[][] {
  const layer = moeLayers(source.model).find((found) => found.index === index);
  const { router, experts } = (layer as NonNullable<typeof layer>).feedForward;
  const plan = createPlan(source.model, [{ layer: index, experts: experts.map((_, e) => e), topK }]);
  const shown = slowForward(source, ids, plan).layers.find((found) => found.layer === index);
  return (shown?.choices ?? []).map((choices) =>
    Array.from({ length: source.model.hiddenSize }, (_, h) =>
      choices.reduce(
        (sum, { gate, output }) => sum + (router.scalesInput ? 1 : gate) * (output[h] as number),
        0,
      ),
    ),
  );
}

describe("measureTopK", () => {
  test.each(["many-experts", "latent-attention", "sigmoid-scores", "attention-sinks"] as const)(
    "is the distance of the outputs of %s",
    async (name) => {
      const source = randomModel(sampleShapes[name]);
      const sequences = [
        [3, 1, 4, 1, 5],
        [9, 2, 6],
      ];
      await using runner = await load(source);
      const emitter = new RunEmitter();
      const seen: number[] = [];
      emitter.on("progress", ({ done, total }) => seen.push(done / total));
      const found = await measureTopK({
        runner,
        sequences: sequences.map((ids) => Int32Array.from(ids)),
        emitter,
      });
      expect(seen).toEqual([0.5, 1]);
      expect(found.map(({ layer }) => layer)).toEqual(moeLayers(source.model).map(({ index }) => index));
      for (const [i, { feedForward }] of moeLayers(source.model).entries()) {
        const { layer, costs } = found[i] as (typeof found)[number];
        const own = feedForward.router.topK;
        expect(costs).toHaveLength(own);
        expect(costs.at(-1)).toBe(0);
        for (let k = 1; k < own; k++) {
          const expected = sequences.reduce((sum, ids) => {
            const [few, all] = [slowOutput(source, ids, layer, k), slowOutput(source, ids, layer, own)];
            const differences = few.flatMap((row, t) =>
              row.map((value, h) => value - (all[t]?.[h] as number)),
            );
            return sum + Math.hypot(...differences) / sequences.length;
          }, 0);
          expect(Math.abs((costs[k - 1] as number) - expected)).toBeLessThanOrEqual(1e-5 * expected);
        }
      }
    },
  );

  test("refuses no data, and stops when told", async () => {
    await using runner = await load(randomModel({ seed: 1 }));
    await expect(measureTopK({ runner, sequences: [] })).rejects.toMatchObject({
      code: "COPPICE_TASK_EMPTY",
    });
    const sequences = [Int32Array.of(1)];
    await expect(measureTopK({ runner, sequences, signal: AbortSignal.abort() })).rejects.toMatchObject({
      code: "COPPICE_ABORTED",
    });
  });
});

describe("topKChoices", () => {
  const { model } = randomModel({ seed: 4, layers: 3, experts: 8, topK: 4 });
  const costs = [
    { layer: 0, costs: [9, 4, 1, 0] },
    { layer: 1, costs: [2, 1.5, 1, 0] },
    { layer: 2, costs: [5, 5, 5, 0] },
  ];

  test("allocated, are the exact optimum of LExI", () => {
    const at = (budget: number) => allocate(topKChoices(model, costs), { budget });
    expect(at(12).layers.map(({ count }) => count)).toEqual([4, 4, 4]);
    expect(at(9).layers.map(({ count }) => count)).toEqual([4, 1, 4]);
    expect(at(8).layers.map(({ count }) => count)).toEqual([3, 1, 4]);
    // A greedy rule that takes the best next expert would never enter layer 2, whose gain comes all at once.
    expect(at(7).cost).toBe(6);
    expect(at(3).layers.map(({ count }) => count)).toEqual([1, 1, 1]);
    const plan = topKPlan(model, at(9));
    expect(plan.layers.map(({ topK }) => topK)).toEqual([4, 1, 4]);
    expect(() => parsePlan(plan, model)).not.toThrow();
    expect(() => topKPlan(model, { ...at(9), layers: [] })).toThrow(/none/);
  });

  test("leave a router alone that always takes as many", () => {
    const mixed = randomModel(sampleShapes.sparsemixer).model;
    const flat = moeLayers(mixed).map(({ index }) => ({ layer: index, costs: [0, 0] }));
    for (const { options } of topKChoices(mixed, flat))
      expect(options.map(({ count }) => count)).toEqual([2]);
  });

  test("refuse costs of other layers or too few of them", () => {
    const refused = (rows: typeof costs) =>
      expect(() => topKChoices(model, rows)).toThrow(
        expect.objectContaining({ code: "COPPICE_PLAN_INVALID" }),
      );
    refused(costs.slice(1));
    refused(costs.map((row) => ({ ...row, costs: row.costs.slice(1) })));
    refused(costs.map((row) => ({ ...row, costs: Array<number>(9).fill(0) })));
  });
});
