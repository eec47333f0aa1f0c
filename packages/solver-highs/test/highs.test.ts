import { type ChoiceGroup, type ChoiceProgram, createRegistry, Rng } from "@coppice/core";
import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type HighsOptions, highs } from "../src/index.js";

const solver = (options: HighsOptions = {}) =>
  createRegistry([highs]).create("solver", "highs", options, undefined);
const exact = await solver();

/** The least loss, by trying everything. */
function tryAll({ groups, budgets }: ChoiceProgram): number | undefined {
  const units = groups.flatMap((group) => group.units.map((options, unit) => ({ group, options, unit })));
  let best: number | undefined;
  const chosen: number[] = [];
  const visit = (loss: number, taken: readonly number[]): void => {
    const next = units[chosen.length];
    if (!next) {
      const places = [...chosen];
      const isAllowed = groups.every((group) => follows(group, places.splice(0, group.units.length)));
      if (isAllowed && taken.every((sum, k) => sum <= (budgets[k] as number)))
        best = Math.min(best ?? loss, loss);
      return;
    }
    next.options.forEach((option, place) => {
      chosen.push(place);
      visit(
        loss + option.loss,
        taken.map((sum, k) => sum + (option.costs[k] as number)),
      );
      chosen.pop();
    });
  };
  visit(
    0,
    budgets.map(() => 0),
  );
  return best;
}

function follows({ different, counts = [] }: ChoiceGroup, places: readonly number[]): boolean {
  if (different !== undefined && new Set(places).size > different) return false;
  return counts.every(({ counts: isCounted, least = 0, most = Number.POSITIVE_INFINITY }) => {
    const count = places.filter((place, unit) => isCounted(unit, place)).length;
    return count >= least && count <= most;
  });
}

function expectAnswer(program: ChoiceProgram) {
  const best = tryAll(program);
  const found = exact.solve(program);
  if (best === undefined) {
    expect(found).toBeUndefined();
    return;
  }
  expect(found?.optimal).toBe(true);
  expect(found?.bound).toBe(found?.loss);
  expect(found?.loss).toBeCloseTo(best, 9);
  // What it says that it chose is that.
  const chosen = program.groups.flatMap(({ units }, g) =>
    units.map((options, u) => options[found?.groups[g]?.[u] as number]),
  );
  expect(chosen.reduce((sum, option) => sum + (option?.loss as number), 0)).toBeCloseTo(best, 9);
  program.groups.forEach((group, g) => {
    expect(follows(group, found?.groups[g] as readonly number[])).toBe(true);
  });
  program.budgets.forEach((budget, k) => {
    const taken = chosen.reduce((sum, option) => sum + (option?.costs[k] as number), 0);
    expect(taken).toBeLessThanOrEqual(budget);
  });
}

/** Losses over many orders of magnitude, costs that are large, and every rule. */
function randomProgram(seed: number): ChoiceProgram {
  const rng = Rng.fromSeed(seed);
  const budgetCount = 1 + rng.integer(2);
  const options = 2 + rng.integer(2);
  const groups = Array.from({ length: 1 + rng.integer(2) }, (): ChoiceGroup => {
    const units = Array.from({ length: 2 + rng.integer(3) }, () =>
      Array.from({ length: options }, () => ({
        loss: 10 ** -(8 * rng.uniform()) - 0.1,
        costs: Array.from({ length: budgetCount }, () => rng.integer(1_000_000)),
      })),
    );
    const least = rng.integer(2);
    return {
      units,
      ...(rng.bernoulli(0.5) && { different: 1 + rng.integer(2) }),
      ...(rng.bernoulli(0.5) && {
        counts: [
          { counts: (_: number, option: number) => option === 0, least, most: least + rng.integer(3) },
        ],
      }),
    };
  });
  const units = groups.reduce((sum, group) => sum + group.units.length, 0);
  return {
    groups,
    budgets: Array.from({ length: budgetCount }, () =>
      Math.floor((0.2 + 0.5 * rng.uniform()) * units * 1_000_000),
    ),
  };
}

describe("highs", () => {
  it("finds what trying everything finds, and nothing when nothing fits", () => {
    let impossible = 0;
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 2 ** 31 - 1 }), (seed) => {
        const program = randomProgram(seed);
        if (tryAll(program) === undefined) impossible++;
        expectAnswer(program);
      }),
      { numRuns: 80, seed: 5 },
    );
    expect(impossible).toBeGreaterThan(1);
  });

  it("sees losses that are a millionth of others", () => {
    const unit = (small: number) => [
      { loss: 1000, costs: [0] },
      { loss: small, costs: [10] },
      { loss: 0, costs: [11] },
    ];
    // One of the two can have what loses nothing: the one to which it matters more.
    expectAnswer({ groups: [{ units: [unit(0.001), unit(0.002)] }], budgets: [21] });
    expect(exact.solve({ groups: [{ units: [unit(0.001), unit(0.002)] }], budgets: [21] })?.groups).toEqual([
      [1, 2],
    ]);
  });

  it("says what it cannot do", async () => {
    const large: ChoiceProgram = {
      groups: [{ units: [[{ loss: 1, costs: [1] }], [{ loss: 2, costs: [1] }]] }],
      budgets: [4],
    };
    const small = await solver({ variables: 1 });
    expect(() => small.solve(large)).toThrow(/has 2 variables, highs takes at most 1/);
    const hasty = await solver({ seconds: 1e-9 });
    expect(() => hasty.solve(hard())).toThrow(/found no choice in 1e-9 s/);
    await expect(solver({ seconds: 0 })).rejects.toMatchObject({ code: "COPPICE_PLUGIN_OPTIONS" });
  });

  it("gives the best so far when the time is up, with a bound", async () => {
    // However fast the machine is: the first answer that there is time for.
    const program = hard();
    for (let seconds = 0.2; seconds < 100; seconds *= 2) {
      const { solve } = await solver({ seconds });
      try {
        const found = solve(program);
        expect(found?.bound).toBeLessThanOrEqual(found?.loss as number);
        expect(found?.optimal).toBe(found?.bound === found?.loss);
        return;
      } catch (error) {
        expect(error).toMatchObject({ code: "COPPICE_SOLVER_LIMIT" });
      }
    }
    expect.unreachable("there was time enough");
  });

  it.each([
    [{ groups: [], budgets: [Number.NaN] }, /a budget is NaN/],
    [{ groups: [{ units: [[]] }], budgets: [] }, /unit 0 of group 0 has no option/],
    [
      { groups: [{ units: [[{ loss: Number.POSITIVE_INFINITY, costs: [] }]] }], budgets: [] },
      /loss of Infinity/,
    ],
    [{ groups: [{ units: [[{ loss: 1, costs: [1] }]] }], budgets: [] }, /has 1 costs for 0 budgets/],
    [{ groups: [{ units: [[{ loss: 1, costs: [-1] }]] }], budgets: [1] }, /cost of -1/],
    [
      { groups: [{ units: [[{ loss: 1, costs: [] }]], different: 0 }], budgets: [] },
      /may have 0 different options/,
    ],
  ] as [ChoiceProgram, RegExp][])("refuses what is no program: %#", (program, message) => {
    expect(() => exact.solve(program)).toThrow(message);
  });
});

/** Many units with few different options for each group: nothing that is proven within a second. */
function hard(): ChoiceProgram {
  const rng = Rng.fromSeed(3);
  const groups = Array.from({ length: 10 }, () => ({
    different: 2,
    units: Array.from({ length: 12 }, () =>
      Array.from({ length: 16 }, (_, option) => ({
        loss: rng.uniform() / (1 + option),
        costs: [option + rng.uniform(), option + rng.uniform(), option + rng.uniform()],
      })),
    ),
  }));
  return { groups, budgets: [700, 700, 700] };
}
