import { moeLayers, roundToDtype } from "@coppice/core";
import { randomModel } from "@coppice/plugin-kit";
import { expect, test } from "vitest";
import { MergeCache } from "../src/merge-cache.js";
import { loadRuntime } from "../src/sessions.js";
import { readWeights } from "../src/weights.js";

async function setUp(slots: number) {
  const { model, weights } = randomModel({ layers: 1, experts: 3, topK: 1, dtype: "BF16", mlpBias: true });
  const runtime = await loadRuntime();
  const specs = moeLayers(model)[0]?.feedForward.experts ?? [];
  const range = { from: 0, to: 1 };
  const read = await readWeights(runtime, model, weights, range, undefined);
  const experts = read.layers.get(0)?.mlps ?? [];
  const bytes = 4 * Object.values(experts[0] ?? {}).reduce((sum, tensor) => sum + tensor.size, 0);
  const cache = new MergeCache(runtime, slots * bytes);
  return {
    bytes,
    cache,
    experts,
    merge: (row: readonly number[]) => cache.merged(0, { row }, specs, experts),
  };
}

test("merged weights and biases are the sum, rounded as they would be stored", async () => {
  const { experts, merge } = await setUp(1);
  const row = [0.75, 0, -0.5];
  for (const part of ["gate", "up", "down", "gateBias", "upBias", "downBias"] as const) {
    const [first, , third] = experts.map((expert) => expert[part]?.data as Float32Array);
    const expected = (first ?? new Float32Array()).map((value, i) => 0.75 * value - 0.5 * (third?.[i] ?? 0));
    roundToDtype(expected, "BF16");
    expect(merge(row)[part]?.data).toEqual(expected);
  }
});

test("an expert that is only itself is not copied", async () => {
  const { cache, experts, merge } = await setUp(1);
  expect(merge([0, 1, 0])).toBe(experts[1]);
  expect(merge([0, 0.5, 0])).not.toBe(experts[1]);
  expect(Array.from(merge([0, 0, 0]).up.data as Float32Array).every((value) => value === 0)).toBe(true);
  expect(cache.bytes).toBeGreaterThan(0);
});

test("the least recently used goes first, and the bytes stay within the limit", async () => {
  const { bytes, cache, merge } = await setUp(2);
  const [a, b, c] = [
    [1, 1, 0],
    [0, 1, 1],
    [1, 0, 1],
  ] as const;
  const [first, second] = [merge(a), merge(b)];
  expect(merge(a)).toBe(first);
  merge(c);
  expect(cache.bytes).toBe(2 * bytes);
  expect(merge(a)).toBe(first);
  expect(merge(b)).not.toBe(second);
  expect(cache.bytes).toBe(2 * bytes);
});

test("a limit below one expert keeps nothing", async () => {
  const { cache, merge } = await setUp(0.5);
  expect(merge([1, 1, 0])).not.toBe(merge([1, 1, 0]));
  expect(cache.bytes).toBe(0);
});
