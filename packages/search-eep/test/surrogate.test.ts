import { Rng } from "@coppice/core";
import { toyModel } from "@coppice/plugin-kit";
import { expect, test } from "vitest";
import { createLayout } from "../src/layout.js";
import { randomSubsets } from "../src/operators-prune.js";
import { fitSurrogate, solveCholesky } from "../src/surrogate.js";

test("Cholesky solves a system with a known solution", () => {
  // [[4,2,1],[2,5,3],[1,3,6]] x = b with x = [1,-2,3]
  const lower = [Float64Array.of(4), Float64Array.of(2, 5), Float64Array.of(1, 3, 6)];
  const x = solveCholesky(lower, [4 - 4 + 3, 2 - 10 + 9, 1 - 6 + 18]);
  expect([...x].map((value) => Number(value.toFixed(10)))).toEqual([1, -2, 3]);
});

test("the surrogate equals weighted ridge regression solved in the primal", () => {
  const layout = createLayout(toyModel(), { keep: 3, groups: "layer" });
  const rng = Rng.fromSeed(5);
  const ranked = Array.from({ length: 25 }, () => ({
    subsets: randomSubsets(rng, layout),
    fitness: rng.uniform(),
  })).sort((a, b) => b.fitness - a.fitness);
  const units = 18;
  const x = ranked.map(({ subsets }) =>
    Array.from({ length: units }, (_, u) => (subsets[Math.floor(u / 6)]?.includes(u % 6) ? 1 : 0)),
  );
  const w = ranked.map((_, rank) => Math.exp((-2 * rank) / ranked.length));
  const total = w.reduce((a, b) => a + b);
  const mean = (f: (i: number) => number) => w.reduce((sum, wi, i) => sum + wi * f(i), 0) / total;
  const mx = Array.from({ length: units }, (_, u) => mean((i) => x[i]?.[u] as number));
  const my = mean((i) => ranked[i]?.fitness as number);
  const lower = Array.from({ length: units }, (_, a) =>
    Float64Array.from({ length: a + 1 }, (_, b) =>
      w.reduce(
        (sum, wi, i) =>
          sum +
          wi * ((x[i]?.[a] as number) - (mx[a] as number)) * ((x[i]?.[b] as number) - (mx[b] as number)),
        a === b ? 1 : 0,
      ),
    ),
  );
  const right = Array.from({ length: units }, (_, a) =>
    w.reduce(
      (sum, wi, i) =>
        sum + wi * ((x[i]?.[a] as number) - (mx[a] as number)) * ((ranked[i]?.fitness as number) - my),
      0,
    ),
  );
  const beta = solveCholesky(lower, right);
  const predict = fitSurrogate(layout, ranked);
  for (let i = 0; i < 20; i++) {
    const subsets = randomSubsets(rng, layout);
    const expected = subsets.reduce(
      (sum, subset, g) => sum + subset.reduce((s, e) => s + (beta[g * 6 + e] as number), 0),
      0,
    );
    expect(predict(subsets)).toBeCloseTo(expected, 9);
  }
});
