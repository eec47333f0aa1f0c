import { reference } from "@coppice/backend-reference";
import { applyPlan, loadModel, memoryFolder, memoryTarget } from "@coppice/checkpoint";
import { openFolder } from "@coppice/checkpoint/node";
import { type AttentionPlan, createPlan, moeLayers } from "@coppice/core";
import { intoMemory, sampleAttention, slowForward, slowSight } from "@coppice/plugin-kit";
import { quantizeCheckpoint, rtn, uniformFormat } from "@coppice/quantizers";
import { describe, expect, it } from "vitest";

const fixtures = new URL("../../plugin-kit/fixtures/", import.meta.url).pathname;
const prompt = Int32Array.of(3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5);
const answer = Int32Array.of(8, 9, 7, 9, 3, 2, 3);
const ids = [...prompt, ...answer];

describe("an attention plan", () => {
  it("goes with a model that is merged, quantized, and pruned while it runs", async () => {
    await using original = await loadModel(await openFolder(`${fixtures}qwen3_moe`));
    const attention = sampleAttention(original.model);
    // Two experts of the original in the first slot, the others as they are but for the last.
    const layers = moeLayers(original.model).map(({ index, feedForward }) => {
      const { length } = feedForward.experts;
      const experts = Array.from({ length: length - 1 }, (_, slot) => slot);
      const merge = experts.map((slot) =>
        Array.from({ length }, (_, j) => (slot === 0 && j >= length - 2 ? 0.25 : 0) + (j === slot ? 0.5 : 0)),
      );
      return { layer: index, experts, merge };
    });
    const merged = memoryTarget();
    await applyPlan(original, createPlan(original.model, layers), merged, { attention });
    await using smaller = await loadModel(memoryFolder(merged.files));
    const target = memoryTarget();
    const format = uniformFormat({ bits: 4, groupSize: 16, symmetric: false, head: 8, embedding: 8 });
    await quantizeCheckpoint(smaller, target, { quantizer: await rtn.create({}, undefined), format });

    await using checkpoint = await loadModel(memoryFolder(target.files));
    const { model, weights } = checkpoint;
    expect(checkpoint.attention).toEqual(attention);
    const pruned = createPlan(
      model,
      moeLayers(model).map(({ index, feedForward }) => ({
        layer: index,
        experts: [...feedForward.experts.keys()].slice(1),
      })),
    );
    const plan = checkpoint.attention as AttentionPlan;
    const sight = slowSight(plan, ids.length);
    const expected = slowForward(await intoMemory(model, weights), ids, pruned, undefined, sight);
    const dense = slowForward(await intoMemory(model, weights), ids, pruned);
    const last = expected.logits.at(-1) as number[];
    expect(
      Math.max(...last.map((value, i) => Math.abs(value - (dense.logits.at(-1)?.[i] ?? 0)))),
    ).toBeGreaterThan(1e-3);

    const backend = await reference.create({}, undefined);
    await using runner = await backend.load({ model, weights });
    const cache = runner.createCache(1, { plan, lengths: [ids.length] });
    const wanted = { cache, plan: pruned };
    const positions = (tokens: Int32Array) => [tokens.map((_, i) => i)];
    const start = await runner.run({ ...wanted, sequences: [prompt], positions: positions(prompt) });
    const logits = [...(start.logits ?? [])];
    for (const token of answer) {
      const sequences = [Int32Array.of(token)];
      logits.push(
        ...((await runner.run({ ...wanted, sequences, positions: [Int32Array.of(0)] })).logits ?? []),
      );
    }
    cache.dispose();
    const differences = expected.logits.flat().map((value, i) => Math.abs(value - (logits[i] as number)));
    expect(logits).toHaveLength(differences.length);
    expect(Math.max(...differences)).toBeLessThan(1e-4);
  });
});
