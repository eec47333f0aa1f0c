import { factorCholesky, Rng, solveCholesky } from "@coppice/core";
import { toyModel } from "@coppice/plugin-kit";
import { expect, test } from "vitest";
import { createLayout } from "../src/layout.js";
import { randomSubsets } from "../src/operators-prune.js";
import { fitSurrogate } from "../src/surrogate.js";

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
  const gram = Float64Array.from({ length: units * units }, (_, at) => {
    const [a, b] = [Math.floor(at / units), at % units];
    return w.reduce(
      (sum, wi, i) =>
        sum + wi * ((x[i]?.[a] as number) - (mx[a] as number)) * ((x[i]?.[b] as number) - (mx[b] as number)),
      a === b ? 1 : 0,
    );
  });
  const beta = Float64Array.from({ length: units }, (_, a) =>
    w.reduce(
      (sum, wi, i) =>
        sum + wi * ((x[i]?.[a] as number) - (mx[a] as number)) * ((ranked[i]?.fitness as number) - my),
      0,
    ),
  );
  expect(factorCholesky(gram, units)).toBe(true);
  solveCholesky(gram, units, beta);
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
