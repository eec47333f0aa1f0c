import { type AttentionSpec, CachePlaces, type HeadSpan } from "@coppice/core";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { headGroups } from "../src/head-groups.js";

const gqa = (more: object) => ({ kind: "gqa", kvHeads: 4, ...more }) as unknown as AttentionSpec;
const everything = 2 ** 40;
const width = (span: HeadSpan | undefined) => (span ? span.sinks + span.window : everything);

describe("groups of heads", () => {
  test("are one by span, in the order of their spans", () => {
    const short = { sinks: 2, window: 6 };
    const long = { sinks: 2, window: 14 };
    expect(headGroups([long, undefined, short, long], gqa({}))).toEqual([
      { heads: Int32Array.of(2), span: short },
      { heads: Int32Array.of(0, 3), span: long },
      { heads: Int32Array.of(1), span: undefined },
    ]);
  });

  test("of a layer without spans are one, of its window or chunk", () => {
    const heads = Int32Array.of(0, 1, 2, 3);
    expect(headGroups(undefined, gqa({}))).toEqual([{ heads, span: undefined }]);
    const window = (count: number) => [{ heads, span: { sinks: 0, window: count } }];
    expect(headGroups(undefined, gqa({ slidingWindow: 9 }))).toEqual(window(9));
    expect(headGroups(undefined, gqa({ slidingWindow: 9, chunk: 5 }))).toEqual(window(5));
  });

  test("are at most three, of the fewest places that any three of them have", () => {
    const spans = fc.array(fc.option(fc.integer({ min: 1, max: 9 }), { nil: undefined }), {
      minLength: 1,
      maxLength: 9,
    });
    fc.assert(
      fc.property(spans, (windows) => {
        const each = windows.map((window) => (window === undefined ? undefined : { sinks: 1, window }));
        const groups = headGroups(each, gqa({ kvHeads: each.length }));
        expect(groups.length).toBeLessThanOrEqual(3);
        const heads = groups.flatMap((group) => [...group.heads]);
        expect(heads.toSorted((a, b) => a - b)).toEqual([...each.keys()]);
        for (const { heads, span, own } of groups) {
          const widths = Array.from(heads, (head) => width(each[head]));
          expect(Math.max(...widths)).toBe(width(span));
          if (own) expect(own).toEqual(Array.from(heads, (head) => each[head]));
          else expect(new Set(widths).size).toBe(1);
        }
        const places = groups.reduce((sum, { heads, span }) => sum + heads.length * width(span), 0);
        expect(places).toBe(fewestPlaces(each.map(width).sort((a, b) => a - b)));
      }),
      { seed: 5 },
    );
  });
});

/** Over all ways to cut ascending widths into at most three runs. */
function fewestPlaces(widths: readonly number[]): number {
  const run = (from: number, to: number) => (to > from ? (to - from) * (widths[to - 1] as number) : 0);
  let best = Number.POSITIVE_INFINITY;
  for (let a = 0; a <= widths.length; a++) {
    for (let b = a; b <= widths.length; b++) {
      best = Math.min(best, run(0, a) + run(a, b) + run(b, widths.length));
    }
  }
  return best;
}

describe("places of a cache", () => {
  test("hold the sinks and the last keys, whatever comes at once", () => {
    const arbitrary = fc.record({
      sinks: fc.integer({ min: 0, max: 4 }),
      window: fc.integer({ min: 1, max: 7 }),
      parts: fc.array(fc.integer({ min: 1, max: 12 }), { minLength: 1, maxLength: 8 }),
    });
    fc.assert(
      fc.property(arbitrary, ({ sinks, window, parts }) => {
        const places = new CachePlaces({ sinks, window });
        const held = new Map<number, number>();
        let past = 0;
        for (const count of parts) {
          places.ranges(past, past + count, past + count, (position, place, length) => {
            for (let i = 0; i < length; i++) held.set(place + i, position + i);
          });
          past += count;
          const expected = [...Array(past).keys()].filter((j) => j < sinks || j > past - window);
          expect([...held.values()].toSorted((a, b) => a - b)).toEqual(expected);
          expect(Math.max(-1, ...held.keys())).toBe(places.filled(past) - 1);
          const found: [number, number][] = [];
          places.ranges(0, past, past, (position, place, length) => {
            for (let i = 0; i < length; i++) found.push([place + i, position + i]);
          });
          expect(new Map(found)).toEqual(held);
        }
      }),
      { seed: 6 },
    );
  });
});
