import { CoppiceError, createPlan, type Scored } from "@coppice/core";
import { separableLandscape, toyExecutor, toyModel } from "@coppice/plugin-kit";
import {
  chooseFinalist,
  type Evaluation,
  memoryJournal,
  PlanEvaluator,
  rankFinalists,
  resampleFinalists,
  runSearch,
} from "@coppice/search";
import { describe, expect, test } from "vitest";
import { Climber, keepEverywhere } from "./strategies.js";

const model = toyModel();
const plan = keepEverywhere(model, [0, 1]);

const finalist = (key: string, ...scores: number[]): Scored => ({
  candidate: { plan, phase: "test", origin: "test" },
  key,
  scores: Float64Array.from(scores),
  fitness: scores.reduce((sum, score) => sum + score, 0) / scores.length,
  cached: false,
});
const evaluation = (key: string, ...scores: number[]): Evaluation => {
  const { fitness, scores: array } = finalist(key, ...scores);
  return { key, plan, fitness, scores: array };
};

describe("choice among finalists", () => {
  test("goes by all samples together, each counting once", () => {
    const finalists = [finalist("a", 1, 1, 1, 0), finalist("b", 1, 0, 1, 0), finalist("c", 1, 0, 0, 0)];
    const choice = [evaluation("a", 0, 0), evaluation("b", 1, 1), evaluation("c", 1, 1)];
    expect(
      rankFinalists(finalists, choice).map((r) => [r.finalist.key, r.choiceFitness, r.pooledFitness]),
    ).toEqual([
      ["b", 1, 4 / 6],
      ["a", 0, 3 / 6],
      ["c", 1, 3 / 6],
    ]);
    expect(chooseFinalist(finalists, choice).key).toBe("b");
  });

  test("leaves out finalists that fail on the choice samples", () => {
    const error = new CoppiceError("COPPICE_BACKEND_FAILED", "NaN");
    const failed = { ...evaluation("a"), fitness: Number.NEGATIVE_INFINITY, error };
    const finalists = [finalist("a", 1), finalist("b", 0)];
    expect(chooseFinalist(finalists, [failed, evaluation("b", 0)]).key).toBe("b");
    expect(() => chooseFinalist(finalists.slice(0, 1), [failed])).toThrow(error);
  });

  test("refuses lists that do not match", () => {
    expect(() => chooseFinalist([], [])).toThrow("0 finalists");
    expect(() => chooseFinalist([finalist("a", 1)], [evaluation("b", 1)])).toThrow("is of plan b");
  });
});

describe("choice by resampling", () => {
  test("ranks by the mean rank over draws of the samples", () => {
    // With two samples a draw has both (half of the draws), the first twice, or the second twice.
    const finalists = [finalist("low", 0, 0), finalist("first", 1, 0), finalist("second", 0, 3)];
    const ranked = resampleFinalists(finalists);
    expect(ranked.map(({ finalist }) => finalist.key)).toEqual(["second", "first", "low"]);
    const expected = [
      // Both: 1; first twice: 2.5 with the low one; second twice: 1.
      { meanRank: (2 * 1 + 2.5 + 1) / 4, firstShare: 3 / 4 },
      { meanRank: (2 * 2 + 1 + 2.5) / 4, firstShare: 1 / 4 },
      { meanRank: (2 * 3 + 2.5 + 2.5) / 4, firstShare: 0 },
    ];
    for (const [i, { meanRank, firstShare }] of expected.entries()) {
      expect(ranked[i]?.meanRank).toBeCloseTo(meanRank, 1);
      expect(ranked[i]?.firstShare).toBeCloseTo(firstShare, 1);
    }
    expect(resampleFinalists(finalists)).toEqual(ranked);
  });

  test("says how often a lead that hangs on one sample would be lost", () => {
    const steady = Array.from({ length: 40 }, (_, i) => (i % 2 ? 0.6 : 0.4));
    const lucky = steady.map((score, i) => (i === 7 ? score + 0.9 : score - 0.02));
    const finalists = [finalist("lucky", ...lucky), finalist("steady", ...steady)];
    expect(finalists[0]?.fitness).toBeGreaterThan(finalists[1]?.fitness as number);
    const [first] = resampleFinalists([
      ...finalists,
      finalist("worse", ...steady.map((score) => score - 0.1)),
    ]);
    // In .36 of the draws sample 7 does not occur.
    expect(first?.finalist.key).toBe("lucky");
    expect(first?.firstShare).toBeCloseTo(1 - 0.36, 1);
  });

  test("keeps the order of equals, and refuses what cannot be compared", () => {
    const same = [finalist("a", 1, 0), finalist("b", 1, 0)];
    expect(resampleFinalists(same).map((r) => [r.finalist.key, r.meanRank, r.firstShare])).toEqual([
      ["a", 1.5, 1],
      ["b", 1.5, 1],
    ]);
    expect(() => resampleFinalists([])).toThrow("0 finalists have no scores");
    expect(() => resampleFinalists([finalist("a", 1), finalist("b", 1, 0)])).toThrow("have 1 and 2 scores");
  });
});

test("re-scoring on the choice samples is remembered apart from the search", async () => {
  const { fitness } = separableLandscape(model);
  const journal = memoryJournal();
  const strategy = new Climber(model, 1);
  const { finalists } = await runSearch({
    strategy,
    model,
    executor: toyExecutor(fitness),
    evaluations: 20,
    journal,
    finalists: 5,
  });
  const candidates = finalists.map((scored) => scored.candidate);
  const other = toyExecutor((p) => 1 - fitness(p), { samples: 2 });
  const choice = new PlanEvaluator({ model, executor: other, journal, scope: "choice" });
  const results = await choice.evaluate(candidates);
  expect(other.evaluated).toHaveLength(5);
  results.forEach((result, i) => {
    expect(result.fitness).toBeCloseTo(1 - (finalists[i]?.fitness ?? 0), 12);
    expect(result.correct).toHaveLength(2);
  });
  const resumed = new PlanEvaluator({ model, executor: other, journal, scope: "choice" });
  expect(await resumed.evaluate(candidates)).toEqual(results);
  expect([resumed.computed, other.evaluated.length]).toEqual([0, 5]);
});

test("plans too long for the journal are left out of it and still not evaluated again", async () => {
  const large = toyModel({ layers: 1, experts: 300 });
  const experts = Array.from({ length: 150 }, (_, expert) => expert);
  const plan = (weight: number) =>
    createPlan(large, [
      {
        layer: 1,
        experts,
        merge: experts.map((kept) => Array.from({ length: 300 }, (_, j) => (j === kept ? weight : 0))),
      },
    ]);
  const journal = memoryJournal();
  const executor = toyExecutor((p) => p.layers[0]?.merge?.[0]?.[0] ?? 0);
  const options = { model: large, executor, journal };
  const requests = [{ plan: plan(0.5) }, { plan: createPlan(large, [{ layer: 1, experts }]) }];
  const first = await new PlanEvaluator(options).evaluate(requests);
  expect(journal.records.map((record) => "plan" in record)).toEqual([false, true]);
  expect(await new PlanEvaluator(options).evaluate(requests)).toEqual(first);
  expect(executor.evaluated).toHaveLength(2);
});
