import {
  type AttentionPlan,
  maskDensity,
  parseAttentionPlan,
  resolveSpans,
  seesKey,
  seesPosition,
  spanDensity,
  spanMask,
} from "@coppice/core";
import { randomModel, sampleAttention, slowSight } from "@coppice/plugin-kit";
import fc from "fast-check";
import { describe, expect, test } from "vitest";

// What runtimes resolve plans with is held to the words that define plans.

const { model } = randomModel({ heads: 6, kvHeads: 3, headDim: 4, layers: 2 });
const anyPlan = fc
  .record({
    blockSize: fc.integer({ min: 1, max: 7 }),
    sinks: fc.integer({ min: 0, max: 9 }),
    rules: fc.array(
      fc.record({
        alpha: fc.integer({ min: -20, max: 20 }),
        beta: fc.constantFrom(0, 0.125, 0.3, 0.5, 1),
      }),
      { minLength: 6, maxLength: 6 },
    ),
  })
  .map((parts): AttentionPlan => sampleAttention(model, parts));
const anyLength = fc.integer({ min: 1, max: 40 });

describe("spans of a plan", () => {
  test("let queries see what plans say", () => {
    fc.assert(
      fc.property(anyPlan, anyLength, (plan, length) => {
        const sight = slowSight(parseAttentionPlan(plan, model), length);
        for (let layer = 0; layer < 2; layer++) {
          const spans = resolveSpans(plan, layer, length);
          for (let head = 0; head < 6; head++) {
            for (let query = 0; query < length; query++) {
              for (let key = 0; key <= query; key++) {
                const span = spans?.[Math.floor(head / 2)];
                expect(seesPosition(span, query, key)).toBe(sight(layer, head, query, key));
              }
            }
          }
        }
      }),
      { numRuns: 60 },
    );
  });

  test("are as dense as the longest rows that the last query sees", () => {
    fc.assert(
      fc.property(anyPlan, anyLength, (plan, length) => {
        const sight = slowSight(plan, length);
        let seen = 0;
        for (let layer = 0; layer < 2; layer++) {
          for (let head = 0; head < 6; head += 2) {
            for (let key = 0; key < length; key++) seen += sight(layer, head, length - 1, key) ? 1 : 0;
          }
        }
        expect(spanDensity(plan, length)).toBeCloseTo(seen / (length * 6), 12);
      }),
    );
  });

  test("fit into the smallest block mask", () => {
    fc.assert(
      fc.property(anyPlan, anyLength, fc.integer({ min: 1, max: 6 }), (plan, length, blockSize) => {
        const spans = resolveSpans(plan, 0, length) ?? [undefined];
        const mask = spanMask(spans, 6, length, blockSize);
        const sight = slowSight(plan, length);
        const block = (position: number) => Math.floor(position / blockSize);
        let [seen, pairs] = [0, 0];
        for (let head = 0; head < 6; head++) {
          const wanted = new Set<string>();
          for (let query = 0; query < length; query++) {
            for (let key = 0; key <= query; key++)
              if (sight(0, head, query, key)) wanted.add(`${block(query)} ${block(key)}`);
          }
          for (let query = 0; query < length; query++) {
            for (let key = 0; key <= query; key++) {
              const inMask = seesKey(mask, head, query, key);
              expect(inMask).toBe(wanted.has(`${block(query)} ${block(key)}`));
              seen += inMask ? 1 : 0;
              pairs++;
            }
          }
        }
        expect(maskDensity(mask, length)).toBeCloseTo(seen / pairs, 12);
      }),
      { numRuns: 60 },
    );
  });
});
