import { type SkipRule, skipExperts, skipped } from "@coppice/core";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { median, quantileThreshold, skipScores } from "../src/skip-thresholds.js";

/** Gate weights of tokens with the same k; few values, so that ties are frequent. */
const tokens = fc
  .integer({ min: 2, max: 4 })
  .chain((topK) =>
    fc.record({
      topK: fc.constant(topK),
      rows: fc.array(fc.array(fc.integer({ min: 1, max: 5 }), { minLength: topK, maxLength: topK }), {
        minLength: 1,
        maxLength: 7,
      }),
    }),
  )
  .map(({ topK, rows }) => ({
    topK,
    slots: Int32Array.from(rows.flat(), (_, i) => i % topK),
    gates: Float32Array.from(rows.flat(), (value) => value / 16),
  }));

function average(
  rule: SkipRule,
  { topK, slots, gates }: { topK: number; slots: Int32Array; gates: Float32Array },
) {
  const own = slots.slice();
  for (let at = 0; at < own.length; at += topK) {
    skipExperts(rule, own.subarray(at, at + topK), gates.slice(at, at + topK));
  }
  return own.filter((slot) => slot !== skipped).length / (own.length / topK);
}

describe.each(["ratio", "top-p"] as const)("thresholds of %s", (rule) => {
  test("come as near to the target as any does", () => {
    fc.assert(
      fc.property(tokens, fc.nat(100), (routing, percent) => {
        const { topK } = routing;
        const target = 1 + (percent / 100) * (topK - 1);
        const threshold = quantileThreshold(rule, skipScores(rule, routing), topK, target);
        expect(threshold).toBeGreaterThanOrEqual(0);
        expect(threshold).toBeLessThanOrEqual(1);
        const miss = (tried: number) => Math.abs(average({ rule, threshold: tried }, routing) - target);
        let best = Math.min(miss(0), miss(1));
        // Between all values that a score of such gate weights can have.
        for (let i = 0; i <= 500; i++) best = Math.min(best, miss((i + 0.3) / 500.6));
        expect(miss(threshold)).toBeLessThanOrEqual(best + 1e-9);
      }),
      { numRuns: 400 },
    );
  });
});

test("median is the middle, or the mean of the two in the middle", () => {
  expect(median(Float64Array.of(3, 1, 2))).toBe(2);
  expect(median(Float64Array.of(10, 1, 2, 4))).toBe(3);
});
