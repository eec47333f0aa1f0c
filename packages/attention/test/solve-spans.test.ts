import { Rng } from "@coppice/core";
import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type SpanProgram, solveSpans } from "../src/solve-spans.js";
import { spanFront } from "../src/span-front.js";

/** Every assignment of rules, tried one after the other. */
function tryAll({ layers, losses, costs, budgets, rulesPerLayer }: SpanProgram): number | undefined {
  const heads = layers.reduce((sum, n) => sum + n, 0);
  const rules = costs.length / budgets.length;
  let best: number | undefined;
  for (let code = 0; code < rules ** heads; code++) {
    const choice = Array.from({ length: heads }, (_, h) => Math.floor(code / rules ** h) % rules);
    let first = 0;
    const mixed = layers.some((n) => {
      const used = new Set(choice.slice(first, first + n));
      first += n;
      return used.size > (rulesPerLayer ?? heads);
    });
    const over = budgets.some(
      (budget, k) =>
        choice.reduce((sum, rule) => sum + (costs[rule * budgets.length + k] as number), 0) > budget,
    );
    if (mixed || over) continue;
    const loss = choice.reduce((sum, rule, h) => sum + (losses[h * rules + rule] as number), 0);
    if (best === undefined || loss < best) best = loss;
  }
  return best;
}

function checkSolution(program: SpanProgram) {
  const { layers, losses, costs, budgets, rulesPerLayer } = program;
  const solution = solveSpans(program);
  if (!solution) return undefined;
  const { choice, loss, bound } = solution;
  const rules = costs.length / budgets.length;
  budgets.forEach((budget, k) => {
    const taken = choice.reduce((sum, rule) => sum + (costs[rule * budgets.length + k] as number), 0);
    expect(taken).toBeLessThanOrEqual(budget);
  });
  let first = 0;
  for (const heads of layers) {
    const used = new Set(choice.subarray(first, first + heads));
    expect(used.size).toBeLessThanOrEqual(rulesPerLayer ?? heads);
    first += heads;
  }
  const sum = choice.reduce((total, rule, h) => total + (losses[h * rules + rule] as number), 0);
  expect(loss).toBeCloseTo(sum, 9);
  expect(bound).toBeLessThanOrEqual(loss + 1e-9);
  return solution;
}

const small = fc
  .record({
    layers: fc.array(fc.integer({ min: 1, max: 3 }), { minLength: 1, maxLength: 2 }),
    rules: fc.integer({ min: 1, max: 4 }),
    lengths: fc.integer({ min: 1, max: 3 }),
    rulesPerLayer: fc.constantFrom(1 as const, 2 as const, undefined),
    seed: fc.array(fc.integer({ min: 0, max: 9 }), { minLength: 60, maxLength: 60 }),
    tightness: fc.integer({ min: 1, max: 12 }),
  })
  .map(({ layers, rules, lengths, rulesPerLayer, seed, tightness }): SpanProgram => {
    const heads = layers.reduce((sum, n) => sum + n, 0);
    const value = (i: number) => seed[i % seed.length] as number;
    return {
      layers,
      losses: Float64Array.from({ length: heads * rules }, (_, i) => value(i) + value(3 * i + 1) / 7),
      costs: Float64Array.from({ length: rules * lengths }, (_, i) => value(5 * i + 2)),
      budgets: Array.from(
        { length: lengths },
        (_, k) => Math.floor((heads * tightness * (value(k) + 6)) / 15) + 1,
      ),
      ...(rulesPerLayer && { rulesPerLayer }),
    };
  });

/** Heads that lose by a power of what is cut, as real ones do; numbers from a fixed sequence. */
function typical(layers: number, heads: number, rulesPerLayer?: 1 | 2): SpanProgram {
  const lengths = [2048, 4096, 8192];
  const rules: [number, number][] = [];
  for (let alpha = -2048; alpha <= 8192; alpha += 1024) {
    for (let beta = 0; beta <= 8; beta++) {
      const span = (n: number) => alpha + (beta / 8) * n;
      if (lengths.every((n) => span(n) > 0) && span(8192) <= 8192 && span(16384) <= 16384)
        rules.push([alpha, beta / 8]);
    }
  }
  let state = 12345;
  const random = () => {
    state = (state * 1103515245 + 12345) % 2 ** 31;
    return state / 2 ** 31;
  };
  const blocks = ([alpha, beta]: [number, number], n: number) =>
    Math.ceil(Math.min(alpha + beta * n, n) / 64);
  const losses: number[] = [];
  for (let h = 0; h < layers * heads; h++) {
    const [size, power, bend] = [Math.exp(4 * random()), 0.5 + 4 * random(), random()];
    for (const rule of rules) {
      const cut = (n: number) => (1 - (64 * blocks(rule, n)) / n) ** power;
      losses.push(size * ((1 - bend) * cut(2048) + bend * cut(8192)));
    }
  }
  return {
    layers: Array<number>(layers).fill(heads),
    losses: Float64Array.from(losses),
    costs: Float64Array.from(rules.flatMap((rule) => lengths.map((n) => blocks(rule, n)))),
    budgets: lengths.map((n) => (layers * heads * n) / 64 / 2),
    ...(rulesPerLayer && { rulesPerLayer }),
  };
}

/** Seven heads whose losses fall nearly by what rules cost: many choices are nearly the best. */
function hard(seed: number): SpanProgram {
  const rng = Rng.fromSeed(seed);
  const costs = Float64Array.from({ length: 8 }, () => 10 + rng.integer(60));
  return {
    layers: [4, 3],
    losses: Float64Array.from(
      { length: 28 },
      (_, i) =>
        100 - (costs[2 * (i % 4)] as number) - 0.5 * (costs[2 * (i % 4) + 1] as number) + 8 * rng.uniform(),
    ),
    costs,
    budgets: [260, 270],
    ...(seed % 2 === 1 && { rulesPerLayer: 2 as const }),
  };
}

describe("solveSpans", () => {
  it("proves the best of choices that are nearly alike", () => {
    for (let seed = 0; seed < 24; seed++) {
      const best = tryAll(hard(seed));
      const solution = checkSolution(hard(seed));
      expect([seed, solution?.loss]).toEqual([seed, best && expect.closeTo(best, 9)]);
    }
  });

  it("finds what trying everything finds, and nothing when nothing fits", () => {
    fc.assert(
      fc.property(small, (program) => {
        const best = tryAll(program);
        const solution = checkSolution(program);
        expect(solution === undefined).toBe(best === undefined);
        if (!solution || best === undefined) return;
        expect(solution.loss).toBeCloseTo(best, 9);
        expect(solution.optimal).toBe(true);
      }),
      { numRuns: 300 },
    );
  });

  it.each([
    [8, undefined],
    [8, 1],
    [32, 2],
  ] as const)(
    "is within one percent of its bound for %i layers of 32 heads, %s rules per layer",
    (layers, rulesPerLayer) => {
      const program = typical(layers, 32, rulesPerLayer);
      expect(program.costs.length / 3).toBeGreaterThanOrEqual(45);
      const solution = checkSolution(program);
      const { loss, bound } = solution as NonNullable<typeof solution>;
      expect(loss - bound).toBeLessThanOrEqual(0.01 * bound);
    },
  );

  it("fits rules of which none is the cheapest at every length", () => {
    // Two heads of each rule take (22, 22) blocks; three of one take 31 of one budget.
    const program: SpanProgram = {
      layers: [2, 2],
      losses: new Float64Array(8).fill(1),
      costs: Float64Array.of(1, 10, 10, 1),
      budgets: [22, 22],
      rulesPerLayer: 1,
    };
    expect([...(checkSolution(program)?.choice ?? [])].sort()).toEqual([0, 0, 1, 1]);
    expect(solveSpans({ ...program, budgets: [21, 22] })).toBeUndefined();
  });

  it("refuses what is no program", () => {
    const program = typical(1, 2);
    expect(() => solveSpans({ ...program, budgets: [0, 1, 1] })).toThrow(/a budget is 0/);
    expect(() => solveSpans({ ...program, layers: [3] })).toThrow(/3 heads/);
    expect(() => solveSpans({ ...program, losses: program.losses.map(() => Number.NaN) })).toThrow(
      /a loss is NaN/,
    );
  });
});

describe("spanFront", () => {
  it("has choices that no other beats at every length, those first that lose least in the mean", () => {
    const rng = Rng.fromSeed(9);
    const rules = [8, 16, 32, 64];
    const layers = [2, 2, 2];
    const losses = [0, 1, 2].map(() =>
      Float64Array.from({ length: 6 * rules.length }, (_, i) => rng.uniform() / (1 + (i % rules.length))),
    );
    const costs = Float64Array.from(rules.flatMap((span) => [span, 2 * span, 2 * span]));
    const front = spanFront({ layers, costs, budgets: [180, 360, 360], rulesPerLayer: 2 }, losses);
    expect(front.length).toBeGreaterThan(2);
    const means = front.map(({ losses: own }) => own.reduce((sum, loss) => sum + loss, 0) / 3);
    expect(means).toEqual([...means].sort((a, b) => a - b));
    for (const a of front) {
      for (const b of front) {
        if (a !== b) expect(a.losses.some((loss, k) => loss < (b.losses[k] as number))).toBe(true);
      }
    }
  });
});
