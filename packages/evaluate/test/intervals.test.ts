import { Rng } from "@coppice/core";
import { bootstrapMean, f1Score, pairedBootstrap, summarize, wilsonInterval } from "@coppice/evaluate";
import { describe, expect, it } from "vitest";

describe("wilsonInterval", () => {
  it("gives published values", () => {
    // R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    for (const [right, samples, low, high] of [
      [81, 263, 0.2553, 0.3662],
      [15, 148, 0.0624, 0.1605],
      [0, 20, 0, 0.1611],
      [1, 29, 0.0061, 0.1718],
    ] as const) {
      const interval = wilsonInterval(right, samples);
      expect(interval.low).toBeCloseTo(low, 3);
      expect(interval.high).toBeCloseTo(high, 3);
    }
    expect(wilsonInterval(20, 20).high).toBe(1);
  });
});

describe("bootstrapMean", () => {
  it("is repeatable and close to the normal interval for many samples", () => {
    const rng = Rng.fromSeed(5);
    const scores = Array.from({ length: 400 }, () => rng.normal() * 2 + 3);
    const interval = bootstrapMean(scores, { seed: 9 });
    expect(bootstrapMean(scores, { seed: 9 })).toEqual(interval);
    const half = (1.96 * 2) / Math.sqrt(400);
    expect(interval.high - interval.value).toBeGreaterThan(half * 0.85);
    expect(interval.high - interval.value).toBeLessThan(half * 1.15);
    expect(interval.value - interval.low).toBeLessThan(half * 1.15);
  });

  it("covers the true mean about as often as it says", () => {
    const rng = Rng.fromSeed(6);
    let covered = 0;
    for (let trial = 0; trial < 200; trial++) {
      const scores = Array.from({ length: 40 }, () => rng.uniform());
      const { low, high } = bootstrapMean(scores, { resamples: 300, seed: trial });
      if (low <= 0.5 && high >= 0.5) covered++;
    }
    expect(covered / 200).toBeGreaterThan(0.89);
    expect(covered / 200).toBeLessThan(0.99);
  });

  it("weighs", () => {
    expect(bootstrapMean([1, 3], {}, [3, 1]).value).toBe(1.5);
    const { value, low, high } = summarize("perplexity", [-1, -2], [1, 3]);
    expect(value).toBeCloseTo(Math.exp(1.75), 10);
    expect(low).toBeCloseTo(Math.E, 10);
    expect(high).toBeCloseTo(Math.E ** 2, 10);
  });
});

describe("pairedBootstrap", () => {
  it("sees through what samples have in common", () => {
    const rng = Rng.fromSeed(1);
    const difficulty = Array.from({ length: 100 }, () => rng.normal() * 10);
    const a = difficulty.map((value) => value + 0.5 + rng.normal() * 0.2);
    const { value, low, high, pValue } = pairedBootstrap(a, difficulty);
    expect(value).toBeCloseTo(0.5, 1);
    expect(low).toBeGreaterThan(0.4);
    expect(high).toBeLessThan(0.6);
    expect(pValue).toBe(0);
  });

  it("finds no difference between equals, and refuses unequal lengths", () => {
    expect(pairedBootstrap([1, 0, 1], [1, 0, 1])).toEqual({ value: 0, low: 0, high: 0, pValue: 1 });
    expect(() => pairedBootstrap([1], [1, 2])).toThrow(/same samples/);
    expect(() => bootstrapMean([])).toThrow(/at least one sample/);
  });
});

describe("f1Score", () => {
  it.each([
    ["The  United States!", "united states", 1],
    ["in the north of Europe", "Northern Europe", 1 / 3],
    ["a cat", "dog", 0],
    ["", "", 1],
    ["the", "cat", 0],
    ["x x y", "x y y", 2 / 3],
  ])("%j against %j is %f", (prediction, gold, expected) => {
    expect(f1Score(prediction, gold)).toBeCloseTo(expected, 12);
  });
});
