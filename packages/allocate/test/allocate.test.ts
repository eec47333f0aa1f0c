import { allocate, type LayerChoices } from "@coppice/allocate";
import fc from "fast-check";
import { describe, expect, test } from "vitest";

/** Few costs, so that ties are frequent; sizes with and without a common divisor. */
const choices = fc
  .tuple(
    fc.array(
      fc.uniqueArray(
        fc.record({
          count: fc.integer({ min: 1, max: 6 }),
          cost: fc.integer({ min: -3, max: 5 }),
          size: fc.nat(7),
        }),
        { minLength: 1, maxLength: 4, selector: ({ count }) => count },
      ),
      { minLength: 1, maxLength: 5 },
    ),
    fc.constantFrom(1, 3, 1000),
  )
  .map(([layers, unit]): LayerChoices[] =>
    layers.map((options, layer) => ({
      layer: 2 * layer,
      options: options.map((option) => ({ ...option, size: option.size * unit })),
    })),
  );

/** Least cost, and the smallest size at that cost, of all combinations; undefined when none fits. */
function exhaustive(layers: readonly LayerChoices[], budget: number, uniform: boolean) {
  let all: { counts: number[]; cost: number; size: number }[] = [{ counts: [], cost: 0, size: 0 }];
  for (const { options } of layers) {
    all = all.flatMap((so) =>
      options.map(({ count, cost, size }) => ({
        counts: [...so.counts, count],
        cost: so.cost + cost,
        size: so.size + size,
      })),
    );
  }
  const possible = all.filter(
    ({ counts, size }) => size <= budget && (!uniform || new Set(counts).size === 1),
  );
  possible.sort((a, b) => a.cost - b.cost || a.size - b.size);
  return possible[0];
}

describe("allocate", () => {
  test.each([false, true])("finds what trying all combinations finds, uniform: %s", (uniform) => {
    fc.assert(
      fc.property(choices, fc.nat(30), fc.constantFrom(1, 3, 1000), (layers, units, unit) => {
        const budget = units * unit;
        const best = exhaustive(layers, budget, uniform);
        if (!best) {
          expect(() => allocate(layers, { budget, uniform })).toThrow(
            expect.objectContaining({ code: "COPPICE_PLAN_KEEP" }),
          );
          return;
        }
        const found = allocate(layers, { budget, uniform });
        expect([found.cost, found.size]).toEqual([best.cost, best.size]);
        expect(found.layers.map(({ layer }) => layer)).toEqual(layers.map(({ layer }) => layer));
        const chosen = found.layers.map(({ count }, i) =>
          layers[i]?.options.find((option) => option.count === count),
        );
        expect(chosen.reduce((sum, option) => sum + (option?.cost ?? Number.NaN), 0)).toBe(best.cost);
        expect(chosen.reduce((sum, option) => sum + (option?.size ?? Number.NaN), 0)).toBe(best.size);
        if (uniform) expect(new Set(found.layers.map(({ count }) => count)).size).toBe(1);
      }),
      { numRuns: 400 },
    );
  });

  test.each([0, 1, 4999])("does not exceed a budget of %i for a rounding error", (budget) => {
    const options = [
      { count: 1, cost: 0, size: 0 },
      { count: 2, cost: -3, size: 5000 },
    ];
    expect(allocate([{ layer: 0, options }], { budget })).toMatchObject({ cost: 0, size: 0 });
  });

  test("counts bytes of equal experts like experts", () => {
    const bytes = 3 * 2 ** 30 + 7;
    const layers = Array.from({ length: 40 }, (_, layer) => ({
      layer,
      options: Array.from({ length: 100 }, (_, i) => ({
        count: i + 1,
        cost: (layer + 1) / (i + 1),
        size: (i + 1) * bytes,
      })),
    }));
    const found = allocate(layers, { budget: 1000.5 * bytes });
    expect(found.size).toBe(1000 * bytes);
    const counts = found.layers.map(({ count }) => count);
    expect(counts).toEqual(counts.toSorted((a, b) => a - b));
  });

  test("takes sizes without a common divisor", () => {
    const options = [
      { count: 1, cost: 1, size: 2 ** 40 },
      { count: 2, cost: 0, size: 2 ** 40 + 1 },
    ];
    const layers = [0, 1].map((layer) => ({ layer, options }));
    expect(allocate(layers, { budget: 2 ** 41 + 1 })).toMatchObject({ cost: 1, size: 2 ** 41 + 1 });
    expect(allocate(layers, { budget: Number.POSITIVE_INFINITY })).toMatchObject({ cost: 0 });
  });

  test("refuses what has no answer, with the numbers", () => {
    const layer = (...options: [count: number, cost: number, size: number][]): LayerChoices => ({
      layer: 3,
      options: options.map(([count, cost, size]) => ({ count, cost, size })),
    });
    const refused = (layers: LayerChoices[], budget: number, code: string, text: RegExp, uniform = false) =>
      expect(() => allocate(layers, { budget, uniform })).toThrow(
        expect.objectContaining({ code, message: expect.stringMatching(text) }),
      );
    refused([layer([2, 1, 2], [3, 0, 3])], 1, "COPPICE_PLAN_KEEP", /at least 2.*budget is 1/);
    refused([layer([2, 1, 2]), layer([3, 1, 3])], 9, "COPPICE_PLAN_KEEP", /all 2 layers/, true);
    refused([], 9, "COPPICE_USAGE", /no layers/);
    refused([layer()], 9, "COPPICE_PLAN_KEEP", /layer 3 has 0 options/);
    refused([layer([1, 1, 1])], Number.NaN, "COPPICE_USAGE", /NaN/);
    refused([layer([1, Number.NaN, 1])], 1, "COPPICE_USAGE", /1 in layer 3 costs NaN/);
    refused([layer([1, 1, 0.5])], 1, "COPPICE_USAGE", /takes 0\.5/);
    refused([layer([1, 1, -1])], 1, "COPPICE_USAGE", /takes -1/);
  });
});
