import { allocateUnits, type CountRule, type UnitGroup, type UnitOption } from "@coppice/allocate";
import { Rng } from "@coppice/core";
import fc from "fast-check";
import { describe, expect, test } from "vitest";

interface Kind extends UnitOption {
  readonly bits: number;
}

const kept: CountRule<Kind>["counts"] = ({ bits }) => bits > 0;
const wide: CountRule<Kind>["counts"] = ({ bits }) => bits === 3;

/** Few values, so that ties are frequent. */
const option = fc.record({ bytes: fc.nat(6), loss: fc.integer({ min: -3, max: 6 }), bits: fc.nat(3) });
const groups = fc
  .array(
    fc.record({
      units: fc.array(fc.array(option, { minLength: 1, maxLength: 4 }), { minLength: 1, maxLength: 3 }),
      keep: fc.option(fc.tuple(fc.nat(2), fc.nat(3))),
      widest: fc.nat(1),
    }),
    { minLength: 1, maxLength: 3 },
  )
  .chain((all) => fc.tuple(fc.constant(all), fc.constantFrom(1, 3, 1000)))
  .map(([all, unit]) =>
    all.map(({ units, keep, widest }, i): UnitGroup<Kind> => {
      const rules = keep
        ? [
            { counts: kept, least: Math.min(...keep), most: Math.max(...keep) },
            { counts: wide, least: widest },
          ]
        : [];
      const scaled = units.map((options) => options.map((kind) => ({ ...kind, bytes: kind.bytes * unit })));
      return { name: `layer ${i}`, units: scaled, rules };
    }),
  );

/** Least loss, and the fewest bytes at that loss, of all choices; undefined when none is possible. */
function exhaustive(all: readonly UnitGroup<Kind>[], budget: number) {
  let partial = [{ bytes: 0, loss: 0 }];
  for (const { units, rules = [] } of all) {
    let choices: Kind[][] = [[]];
    for (const options of units) choices = choices.flatMap((so) => options.map((kind) => [...so, kind]));
    const allowed = choices.filter((choice) =>
      rules.every(({ counts, least = 0, most = units.length }) => {
        const count = choice.filter(counts).length;
        return count >= least && count <= most;
      }),
    );
    partial = partial.flatMap(({ bytes, loss }) =>
      allowed.map((choice) => ({
        bytes: choice.reduce((sum, kind) => sum + kind.bytes, bytes),
        loss: choice.reduce((sum, kind) => sum + kind.loss, loss),
      })),
    );
  }
  return partial
    .filter(({ bytes }) => bytes <= budget)
    .sort((a, b) => a.loss - b.loss || a.bytes - b.bytes)[0];
}

describe("allocateUnits", () => {
  test("finds what trying all choices finds, with rules and without", () => {
    let [solved, refused] = [0, 0];
    fc.assert(
      fc.property(groups, fc.nat(40), fc.constantFrom(1, 3, 1000), (all, units, unit) => {
        const budget = units * unit;
        const best = exhaustive(all, budget);
        if (!best) {
          refused++;
          expect(() => allocateUnits(all, { budget })).toThrow(
            expect.objectContaining({ code: "COPPICE_PLAN_KEEP" }),
          );
          return;
        }
        solved++;
        const found = allocateUnits(all, { budget });
        expect(found).toMatchObject({ bytes: best.bytes, loss: best.loss, optimal: true });
        const chosen = found.groups.flat();
        expect(chosen.reduce((sum, { bytes }) => sum + bytes, 0)).toBe(best.bytes);
        expect(chosen.reduce((sum, { loss }) => sum + loss, 0)).toBe(best.loss);
        all.forEach(({ units, rules = [] }, g) => {
          expect(found.groups[g]?.every((kind, u) => units[u]?.includes(kind))).toBe(true);
          for (const { counts, least = 0, most = units.length } of rules) {
            const count = found.groups[g]?.filter(counts).length;
            expect(count).toBeGreaterThanOrEqual(least);
            expect(count).toBeLessThanOrEqual(most);
          }
        });
        for (const less of [0, 0.5, 20]) {
          expect(allocateUnits(all, { budget, below: best.loss - less })).toBeNull();
        }
        expect(allocateUnits(all, { budget, below: best.loss + 0.5 })?.loss).toBe(best.loss);
      }),
      { numRuns: 1500, seed: 7 },
    );
    expect(solved).toBeGreaterThan(500);
    expect(refused).toBeGreaterThan(100);
  });

  test("agrees with a table over all budgets on hundreds of units", () => {
    const rng = Rng.fromSeed(3);
    const all: UnitGroup<Kind>[] = Array.from({ length: 12 }, (_, layer) => ({
      name: `layer ${layer}`,
      units: Array.from({ length: 25 }, () => {
        const weight = rng.uniform() ** 2;
        return [0, 2, 4, 8].map((bits) => ({
          bits,
          bytes: bits * (5 + (layer % 3)),
          loss: weight * 4 ** -bits,
        }));
      }),
    }));
    const units = all.flatMap((group) => group.units);
    const largest = 3 * 25 * 12 * 6;
    let table = new Float64Array(largest + 1);
    for (const options of units) {
      table = table.map((_, room) =>
        options.reduce(
          (best, { bytes, loss }) =>
            bytes <= room ? Math.min(best, (table[room - bytes] as number) + loss) : best,
          Number.POSITIVE_INFINITY,
        ),
      );
    }
    for (const budget of [0, 1000, 2717, 4001, largest]) {
      const { loss, bytes, bound, optimal } = allocateUnits(all, { budget });
      expect(optimal).toBe(true);
      expect(bytes).toBeLessThanOrEqual(budget);
      expect(loss).toBeCloseTo(table[budget] as number, 12);
      expect(bound).toBe(loss);
    }
  });

  test("says how far from the best it may be where thousands of units are alike", () => {
    const options = [0, 2, 4, 8].map((bits): Kind => ({ bits, bytes: 1000 * bits + 96, loss: 5 ** -bits }));
    const all = [{ name: "layer 0", units: Array.from({ length: 5000 }, () => options) }];
    const found = allocateUnits(all, { budget: 6_000_001 });
    expect(found.optimal).toBe(false);
    expect(found.bytes).toBeLessThanOrEqual(6_000_001);
    // With b bytes, at most (b - 5000 * 96) / 2000 of the units have 2 bits, which is where the hull is steepest.
    const least = 5000 - ((6_000_001 - 480_000) / 2000) * (1 - 5 ** -2);
    expect(found.bound).toBeGreaterThanOrEqual(least - 1e-6);
    expect(found.loss - found.bound).toBeLessThan(1e-3 * found.loss);
    expect(found.loss).toBeGreaterThanOrEqual(found.bound);
  });

  test("keeps at least the top-k of every layer, and exactly so many where asked", () => {
    const units = [5, 1, 1, 3].map((weight) =>
      [0, 4].map((bits): Kind => ({ bits, bytes: bits, loss: bits === 0 ? weight : 0 })),
    );
    const bits = (rule: CountRule<Kind>, budget: number) =>
      allocateUnits([{ name: "layer 0", units, rules: [rule] }], { budget }).groups[0]?.map(
        (kind) => kind.bits,
      );
    expect(bits({ counts: kept, least: 2 }, 8)).toEqual([4, 0, 0, 4]);
    expect(bits({ counts: kept, least: 2, most: 2 }, 100)).toEqual([4, 0, 0, 4]);
    expect(() => bits({ counts: kept, least: 2 }, 7)).toThrow(
      /smallest choice takes 8 bytes, the budget is 7/,
    );
    expect(() => bits({ counts: kept, least: 5 }, 99)).toThrow(
      /rule 1 of layer 0 wants 5 to 4 of its 4 units/,
    );
  });

  test("refuses what it cannot work with, with the values", () => {
    const refused = (units: UnitOption[][], budget: number, code: string, text: RegExp) =>
      expect(() => allocateUnits([{ name: "layer 3", units }], { budget })).toThrow(
        expect.objectContaining({ code, message: expect.stringMatching(text) }),
      );
    refused([[]], 9, "COPPICE_PLAN_KEEP", /unit 0 of layer 3 has no options/);
    refused([[{ bytes: 1, loss: 0 }]], Number.NaN, "COPPICE_USAGE", /NaN/);
    refused([[{ bytes: 1, loss: Number.NaN }]], 9, "COPPICE_USAGE", /loss of NaN/);
    refused([[{ bytes: 0.5, loss: 1 }]], 9, "COPPICE_USAGE", /takes 0\.5 bytes/);
    refused([[{ bytes: -1, loss: 1 }]], 9, "COPPICE_USAGE", /takes -1 bytes/);
  });
});
