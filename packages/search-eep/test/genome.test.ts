import { Rng } from "@coppice/core";
import { expect, test } from "vitest";
import { dominantExperts, type Genome, genomeKey, oneHot } from "../src/genome.js";
import { stepCoefficients } from "../src/operators-merge.js";

const start: Genome = [0, 1].map(() => ({
  weights: oneHot([0, 2], 4),
  router: oneHot([0, 2], 4),
}));

test("genomes that differ in any coefficient have different keys, copies the same", () => {
  const rng = Rng.fromSeed(1);
  const keys = new Set<string>();
  const texts = new Set<string>();
  for (let i = 0; i < 5000; i++) {
    const options = { groups: 2, probability: 0.2, sigma: 0.0001, router: true };
    const child = stepCoefficients(rng, start, options);
    expect(genomeKey(structuredClone(child))).toBe(genomeKey(child));
    keys.add(genomeKey(child));
    texts.add(JSON.stringify(child));
  }
  expect(keys.size).toBe(texts.size);
  expect(keys.size).toBeGreaterThan(3000);
});

test("a step changes at most the groups that it may, and the router only when it is free", () => {
  const rng = Rng.fromSeed(2);
  for (let i = 0; i < 100; i++) {
    const child = stepCoefficients(rng, start, { groups: 1, probability: 0.5, sigma: 0.1, router: false });
    expect(child.filter((group, g) => group.weights !== start[g]?.weights)).toHaveLength(1);
    expect(child.every((group, g) => group.router === start[g]?.router)).toBe(true);
  }
});

test("dominant experts are all different, the largest entries first", () => {
  expect(
    dominantExperts([
      [0.2, 0.9, 0, 0],
      [0.1, 0.95, 0.3, 0.2],
      [0.3, 0.8, 0.29, 0],
    ]),
  ).toEqual([2, 1, 0]);
});
