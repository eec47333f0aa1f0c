import { Rng } from "@coppice/core";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { type Genome, type GroupGenome, isOneHot, oneHot } from "../src/genome.js";
import {
  crossRows,
  drawGates,
  normalizeRows,
  perturbEntries,
  repointRows,
} from "../src/operators-published.js";

const subset = (rng: Rng, experts: number, keep: number) => rng.sample(experts, keep);

function genome(rng: Rng, groups: number, experts: number, keep: number): Genome {
  return Array.from({ length: groups }, () => {
    const rows = oneHot(subset(rng, experts, keep), experts);
    return { weights: rows, router: rows };
  });
}

const kept = (group: GroupGenome) => group.router.map((row) => row.indexOf(1));
const sets = (g: Genome) =>
  g
    .map((group) =>
      kept(group)
        .sort((a, b) => a - b)
        .join(),
    )
    .join(";");
const on = (groups: number) => Array.from({ length: groups }, () => ({ weights: true, router: true }));

describe("prune mutation", () => {
  // Shares measured by running the operators of the released code itself.
  test.each([
    [4, 4, 0.62],
    [4, 2, 0.75],
    [32, 4, 0.04],
    [32, 2, 0.14],
  ])(
    "with %i groups and %i of 8 experts, repeats its parent as often as the released code does",
    (groups, keep, share) => {
      const rng = Rng.fromSeed(groups + keep);
      const parent = genome(rng, groups, 8, keep);
      const trials = 4000;
      let same = 0;
      for (let i = 0; i < trials; i++) {
        const child = repointRows(rng, parent, drawGates(rng, groups, 0.25), 0.15);
        if (sets(child) === sets(parent)) same++;
      }
      expect(Math.abs(same / trials - share)).toBeLessThan(0.025);
    },
  );

  test("keeps rows one-hot and different, the router in step, and closed groups as they are", () => {
    fc.assert(
      fc.property(
        fc.integer(),
        fc.integer({ min: 1, max: 6 }),
        fc.float({ min: 0, max: 1, noNaN: true }),
        (seed, keep, p) => {
          const rng = Rng.fromSeed(seed);
          const parent = genome(rng, 3, 6, keep);
          const gates = drawGates(rng, 3, 0.25);
          const child = repointRows(rng, parent, gates, p);
          child.forEach((group, g) => {
            expect(isOneHot(group.weights)).toBe(true);
            expect(group.router).toEqual(group.weights);
            if (!gates[g]?.weights) expect(group).toBe(parent[g]);
          });
        },
      ),
    );
  });
});

describe("crossover", () => {
  test("of stock plans keeps the two rows of a slot together and every router row different", () => {
    fc.assert(
      fc.property(fc.integer(), (seed) => {
        const rng = Rng.fromSeed(seed);
        const marked = (mark: number) =>
          genome(rng, 3, 8, 4).map((group) => ({
            router: group.router,
            weights: group.router.map((row) => row.map((value) => value * mark)),
          }));
        const a = marked(2);
        const b = marked(3);
        const child = crossRows(rng, a, b, drawGates(rng, 3, 0.5), { fromFirst: 0.6, stock: true });
        child.forEach((group, g) => {
          expect(isOneHot(group.router)).toBe(true);
          kept(group).forEach((expert, slot) => {
            const mark = group.weights[slot]?.[expert];
            expect([2, 3]).toContain(mark);
            const parent = (mark === 2 ? a : b)[g] as GroupGenome;
            expect(group.weights[slot]).toEqual(parent.weights[slot]);
            expect(group.router[slot]).toEqual(parent.router[slot]);
          });
        });
      }),
    );
  });

  test("takes rows of open groups and whole matrices of closed ones from the first parent in 60 %", () => {
    const rng = Rng.fromSeed(1);
    const a = genome(rng, 1, 8, 4).map(({ weights }) => ({ weights, router: weights }));
    const b: Genome = a.map(() => ({ weights: fill(9), router: fill(9) }));
    const counts = { rows: 0, whole: 0, mixed: 0 };
    const trials = 2000;
    for (let i = 0; i < trials; i++) {
      const gates = [{ weights: true, router: false }];
      const [child] = crossRows(rng, a, b, gates, { fromFirst: 0.6, stock: false });
      counts.rows += child?.weights.filter((row) => row[0] !== 9).length ?? 0;
      const fromA = child?.router.filter((row) => row[0] !== 9).length ?? 0;
      if (fromA === 4) counts.whole++;
      else if (fromA > 0) counts.mixed++;
    }
    expect(counts.rows / (4 * trials)).toBeCloseTo(0.6, 1);
    expect(counts.whole / trials).toBeCloseTo(0.6, 1);
    expect(counts.mixed).toBe(0);
  });
});

describe("merge mutation", () => {
  const zero: Genome = Array.from({ length: 2 }, () => ({ weights: fill(0), router: fill(0) }));
  const options = { probability: 0.25, sigma: 0.065, stock: false };

  test("moves a quarter of the entries of open matrices by normal steps of 0.065", () => {
    const rng = Rng.fromSeed(4);
    const gates = [
      { weights: true, router: false },
      { weights: false, router: true },
    ];
    const steps: number[] = [];
    const trials = 500;
    for (let i = 0; i < trials; i++) {
      const child = perturbEntries(rng, zero, gates, options);
      expect(child[0]?.router).toBe(zero[0]?.router);
      expect(child[1]?.weights).toBe(zero[1]?.weights);
      steps.push(
        ...[child[0]?.weights, child[1]?.router].flatMap((m) => (m ?? []).flat()).filter((v) => v !== 0),
      );
    }
    expect(steps.length / (trials * 64)).toBeCloseTo(0.25, 1);
    const variance = steps.reduce((sum, step) => sum + step ** 2, 0) / steps.length;
    expect(Math.sqrt(variance)).toBeCloseTo(0.065, 3);
  });

  test("leaves a stock router alone", () => {
    const child = perturbEntries(Rng.fromSeed(1), zero, on(2), { ...options, stock: true });
    child.forEach((group, g) => {
      expect(group.router).toBe(zero[g]?.router);
    });
  });
});

test("normalising divides merge rows by their sums and spares rows that sum to nearly 0", () => {
  const weights = [
    [1, 0.5, -0.25],
    [0.5, -0.5, 0.0001],
    [-1, -1, 0],
  ];
  const [group] = normalizeRows([{ weights, router: weights }]);
  expect(group?.router).toBe(weights);
  expect(group?.weights[0]?.reduce((a, b) => a + b)).toBeCloseTo(1, 12);
  expect(group?.weights[1]).toBe(weights[1]);
  expect(group?.weights[2]).toEqual([0.5, 0.5, -0]);
});

function fill(value: number): number[][] {
  return Array.from({ length: 4 }, () => new Array<number>(8).fill(value));
}
