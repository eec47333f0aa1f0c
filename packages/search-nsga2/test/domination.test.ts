import { Rng } from "@coppice/core";
import { describe, expect, test } from "vitest";
import {
  crowdingDistances,
  dominates,
  isBetterPlaced,
  type Solution,
  sortedFronts,
  survivors,
} from "../src/domination.js";
import { FrontArchive } from "../src/front-archive.js";

const solution = (...goals: number[]): Solution => ({ goals, failed: false });
const failure: Solution = { goals: [Number.NEGATIVE_INFINITY, -1], failed: true };

/** Solutions with many ties. */
function randomSolutions(seed: number, count: number, objectives: number): Solution[] {
  const rng = Rng.fromSeed(seed);
  return Array.from({ length: count }, () =>
    rng.bernoulli(0.05)
      ? { goals: Array.from({ length: objectives }, () => Number.NEGATIVE_INFINITY), failed: true }
      : solution(...Array.from({ length: objectives }, () => rng.integer(6))),
  );
}

/** The definition: a front is what nothing else of the rest dominates. */
function slowFronts(solutions: readonly Solution[]): number[][] {
  let rest = [...solutions.keys()];
  const fronts: number[][] = [];
  while (rest.length > 0) {
    const front = rest.filter(
      (i) => !rest.some((j) => dominates(solutions[j] as Solution, solutions[i] as Solution)),
    );
    fronts.push(front);
    rest = rest.filter((i) => !front.includes(i));
  }
  return fronts;
}

test("dominates: as good everywhere, better somewhere; failures last", () => {
  expect(dominates(solution(1, 2), solution(1, 1))).toBe(true);
  expect(dominates(solution(1, 1), solution(1, 1))).toBe(false);
  expect(dominates(solution(2, 1), solution(1, 2))).toBe(false);
  expect(dominates(solution(-100, -100), failure)).toBe(true);
  expect(dominates(failure, solution(-100, -100))).toBe(false);
  expect(dominates(failure, failure)).toBe(false);
});

test("fronts are those of the definition", () => {
  for (let seed = 1; seed <= 30; seed++) {
    const solutions = randomSolutions(seed, 40, 2 + (seed % 3));
    expect(sortedFronts(solutions)).toEqual(slowFronts(solutions));
  }
});

describe("crowding distance", () => {
  test("by hand", () => {
    // Ranges 4 and 8; the two in the middle: (3 - 0) / 4 + (8 - 1) / 8 and (4 - 1) / 4 + (6 - 0) / 8.
    const front = [solution(0, 8), solution(1, 6), solution(3, 1), solution(4, 0)];
    const { POSITIVE_INFINITY: ends } = Number;
    expect(crowdingDistances(front)).toEqual([ends, 3 / 4 + 7 / 8, 3 / 4 + 6 / 8, ends]);
  });

  test("is infinite at both ends", () => {
    const { POSITIVE_INFINITY: ends } = Number;
    expect(crowdingDistances([solution(4), solution(0), solution(3), solution(2)])).toEqual([
      ends,
      ends,
      2 / 4,
      3 / 4,
    ]);
  });

  test("is no NaN where all are equal, single or failed", () => {
    for (const front of [
      [solution(1, 1), solution(1, 1), solution(1, 1)],
      [solution(1, 2)],
      [failure, failure, failure],
    ])
      for (const distance of crowdingDistances(front)) expect(distance).not.toBeNaN();
    expect(crowdingDistances([])).toEqual([]);
  });
});

test("survivors: whole fronts first, of the last one the loneliest", () => {
  const solutions = [solution(0, 0), solution(0, 8), solution(1, 6), solution(3, 1), solution(4, 0), failure];
  const order = (count: number) =>
    survivors(solutions, count).map(({ solution }) => solutions.indexOf(solution));
  expect(order(3).slice(0, 2).sort()).toEqual([1, 4]);
  expect(order(3)[2]).toBe(2);
  expect(order(6)).toEqual([1, 4, 2, 3, 0, 5]);
});

test("a better front comes before a lonelier place", () => {
  const place = (front: number, distance: number) => ({ solution: 0, front, distance });
  expect(isBetterPlaced(place(0, 0.1), place(1, 9))).toBe(true);
  expect(isBetterPlaced(place(1, 9), place(0, 0.1))).toBe(false);
  expect(isBetterPlaced(place(1, 9), place(1, 0.1))).toBe(true);
  expect(isBetterPlaced(place(1, 9), place(1, 9))).toBe(false);
});

test("the archive is the first front of everything told, without repeats", () => {
  for (let seed = 1; seed <= 20; seed++) {
    const solutions = randomSolutions(seed, 60, 3);
    const archive = new FrontArchive<Solution>();
    for (const each of solutions) archive.add(each);
    const texts = (list: readonly Solution[]) => [...new Set(list.map(({ goals }) => goals.join()))].sort();
    const first = (slowFronts(solutions)[0] as number[]).map((i) => solutions[i] as Solution);
    expect(archive.members.map(({ goals }) => goals.join()).sort()).toEqual(texts(first));
  }
});
