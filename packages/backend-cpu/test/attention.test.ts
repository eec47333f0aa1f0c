import { reference } from "@coppice/backend-reference";
import { type AttentionMasker, type AttentionPlan, blockMask, Rng, type RunAttention } from "@coppice/core";
import { type MemoryModel, type RandomModelShape, randomModel, sampleAttention } from "@coppice/plugin-kit";
import { describe, expect, test } from "vitest";
import type { UnitLimits } from "../src/units.js";
import { maxDifference } from "./max-difference.js";
import { open, positions, sequences } from "./open-runner.js";

const tiny: UnitLimits = { tokens: 6, scores: 24, everyBytes: 1 };
const shapes: Record<string, RandomModelShape> = {
  "heads of size 16": { heads: 10, kvHeads: 5, headDim: 16 },
  "laid out heads": { heads: 4, kvHeads: 4, headDim: 6, interleaved: true, qkNorm: true, bias: true },
  "norms behind the rotation": { heads: 4, kvHeads: 2, headDim: 12, qkNorm: true, normAfterRotary: true },
};
/** Hides every third block behind the diagonal, and of a step every third page. */
const masker: AttentionMasker = {
  prefill: ({ tokens, heads, sequence }) =>
    blockMask(2, Math.ceil(tokens / 2), heads, (head, row, column) =>
      row === column ? true : (row + column + head + sequence) % 3 > 0,
    ),
  decode: ({ positions, kvHeads }) => ({
    pageSize: 3,
    heads: Array.from({ length: kvHeads }, (_, head) =>
      Int32Array.from({ length: Math.ceil(positions / 3) }, (_, page) => page).filter(
        (page, _, pages) => page === pages.length - 1 || (page + head) % 3 > 0,
      ),
    ),
  }),
};

async function expected(loaded: MemoryModel, attention: RunAttention) {
  const backend = await reference.create({}, undefined);
  await using runner = await backend.load(loaded);
  return (await runner.run({ sequences, positions, attention })).logits;
}

describe("small units", () => {
  test.each(Object.entries(shapes))("of %s under a plan give what whole texts give", async (_, shape) => {
    const loaded = randomModel({ layers: 2, ...shape });
    const attention = { plan: sampleAttention(loaded.model), lengths: sequences.map(() => 12) };
    const { runner } = await open(loaded, tiny);
    const wanted = await expected(loaded, attention);
    const { logits } = await runner.run({ sequences, positions, attention });
    expect(maxDifference(logits, wanted)).toBeLessThan(1e-4);
    const cache = runner.createCache(sequences.length, attention);
    const cached = await runner.run({ sequences, positions, cache });
    expect(maxDifference(cached.logits, wanted)).toBeLessThan(1e-4);
    await runner.dispose();
  });

  test.each(Object.entries(shapes))("of %s under a masker give what whole texts give", async (_, shape) => {
    const loaded = randomModel({ layers: 2, ...shape });
    const attention = { masker };
    const { runner } = await open(loaded, tiny);
    const wanted = await expected(loaded, attention);
    const { logits } = await runner.run({ sequences, positions, attention });
    expect(maxDifference(logits, wanted)).toBeLessThan(1e-4);
    const cache = runner.createCache(sequences.length, attention);
    const cached = await runner.run({ sequences, positions, cache });
    expect(maxDifference(cached.logits, wanted)).toBeLessThan(1e-4);
    await runner.dispose();
  });
});

describe("a long text", () => {
  const loaded = randomModel({ layers: 2, heads: 4, kvHeads: 4, headDim: 16, context: 1400 });
  const plan: AttentionPlan = {
    ...sampleAttention(loaded.model),
    blockSize: 64,
    sinks: 8,
    rules: [0.25, 0.5, 0.125, 1].map((beta) => ({ alpha: 0, beta })),
    layers: [
      [0, 2, 1, 2],
      [1, 0, 0, 0],
    ],
  };
  const rng = Rng.fromSeed(7);
  const text = Int32Array.from({ length: 1200 }, () => rng.integer(loaded.model.vocabSize));
  const attention = { plan, lengths: [1200] };
  const last = Int32Array.of(0, 300, 511, 512, 900, 1199);

  test("in parts of which each attends to what a cache keeps is the same as in the reference backend", async () => {
    const request = { sequences: [text], positions: [last] };
    await using slow = await (await reference.create({}, undefined)).load(loaded);
    const { runner } = await open(loaded);
    const wanted = (await slow.run({ ...request, attention })).logits;
    expect(maxDifference((await runner.run({ ...request, attention })).logits, wanted)).toBeLessThan(1e-4);
    const cache = runner.createCache(1, attention);
    expect(maxDifference((await runner.run({ ...request, cache })).logits, wanted)).toBeLessThan(1e-4);
    await runner.dispose();
  });

  test("takes as much of a cache as its heads see", async () => {
    const { runner } = await open(loaded);
    const cache = runner.createCache(1, attention);
    expect(cache.bytes).toBe(0);
    await runner.run({ sequences: [text], cache });
    // Spans of 320, 192 and 640 tokens, of which the newest needs no place before the next one, in whole sixteens.
    const places = 320 + 2 * 192 + 640 + (640 + 3 * 320);
    expect(cache.bytes).toBe(places * 2 * 16 * 4);
    const dense = runner.createCache(1);
    await runner.run({ sequences: [text], cache: dense });
    expect(dense.bytes).toBeGreaterThanOrEqual(8 * 1200 * 2 * 16 * 4);
    expect(dense.bytes).toBeLessThan(1.05 * 8 * 1200 * 2 * 16 * 4);
    await runner.dispose();
  });

  test("of a layer that slides takes its window", async () => {
    const { runner } = await open(
      randomModel({ layers: 2, heads: 4, kvHeads: 4, headDim: 16, slidingWindow: 33, slidingLayers: [0] }),
    );
    const cache = runner.createCache(1);
    await runner.run({ sequences: [text.subarray(0, 200)], cache });
    expect(cache.bytes).toBe(4 * (32 + 240) * 2 * 16 * 4);
    await runner.dispose();
  });
});
