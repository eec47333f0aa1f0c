import { CoppiceError, type Plan, planKey, RunEmitter } from "@coppice/core";
import { separableLandscape, toyExecutor, toyModel } from "@coppice/plugin-kit";
import { idleAskLimit, memoryJournal, runSearch } from "@coppice/search";
import { describe, expect, test } from "vitest";
import { Climber, FixedStrategy, keepEverywhere } from "./strategies.js";

const model = toyModel();
const { fitness, optimum } = separableLandscape(model);
const plan = (...experts: number[]) => keepEverywhere(model, experts);

function start(plans: readonly Plan[], perAsk?: number) {
  const strategy = new FixedStrategy(plans, perAsk);
  return { strategy, executor: toyExecutor(fitness), model };
}

describe("memory", () => {
  test("repeated and permuted plans never reach the executor", async () => {
    const plans = [plan(0, 1), plan(1, 0), plan(2, 3), plan(0, 1), plan(4, 5), plan(3, 2), plan(0, 2)];
    const run = start(plans, 3);
    const result = await runSearch({ ...run, evaluations: 100 });
    expect(run.executor.evaluated.map((p) => planKey(p, model))).toEqual(
      [plan(0, 1), plan(2, 3), plan(4, 5), plan(0, 2)].map((p) => planKey(p, model)),
    );
    expect(result).toMatchObject({ evaluations: 4, cacheHits: 3, replayed: 0, stopped: "strategy" });
    expect(run.strategy.told.map((scored) => scored.cached)).toEqual([
      false,
      true,
      false,
      true,
      false,
      true,
      false,
    ]);
    run.strategy.told.forEach((scored, i) => {
      expect(scored.candidate.plan).toBe(plans[i]);
      expect(scored.fitness).toBeCloseTo(fitness(plans[i] as Plan), 12);
    });
  });

  test("an adaptive search is served repeats for free and spends its whole budget on new plans", async () => {
    const executor = toyExecutor(fitness);
    const strategy = new Climber(model, 3);
    const result = await runSearch({ strategy, executor, model, evaluations: 90 });
    const keys = executor.evaluated.map((p) => planKey(p, model));
    expect(new Set(keys).size).toBe(90);
    expect(keys).toHaveLength(90);
    expect(result.cacheHits).toBeGreaterThan(10);
    expect(result.stopped).toBe("budget");
    expect(result.best.fitness).toBeLessThanOrEqual(optimum(3) + 1e-12);
  });
});

describe("front", () => {
  test("of a strategy that has one stands in the result, its plans canonical", async () => {
    const plans = [plan(1, 0), plan(4, 2)];
    const run = start(plans);
    const objectives = [{ name: "fitness", better: "higher" }] as const;
    const strategy = Object.assign(run.strategy, {
      front: () => ({
        objectives,
        points: plans.map((plan, i) => ({ plan, values: [run.strategy.told[i]?.fitness ?? -1] })),
      }),
    });
    const { front } = await runSearch({ ...run, strategy, evaluations: 10 });
    const expected = [plan(0, 1), plan(2, 4)];
    expect(front).toEqual({
      objectives,
      points: expected.map((plan) => ({
        key: planKey(plan, model),
        plan,
        values: [expect.closeTo(fitness(plan), 12)],
      })),
    });
  });

  test("is absent for a strategy with one goal", async () => {
    expect(await runSearch({ ...start([plan(0, 1)]), evaluations: 10 })).not.toHaveProperty("front");
  });
});

describe("budget", () => {
  test("bounds the last ask, so that it is never exceeded", async () => {
    const plans = [plan(0, 1), plan(0, 2), plan(0, 3), plan(0, 4), plan(0, 5), plan(1, 2), plan(1, 3)];
    const run = start(plans);
    const result = await runSearch({ ...run, evaluations: 5, batch: 3 });
    expect(run.strategy.limits).toEqual([3, 2]);
    expect(result).toMatchObject({ evaluations: 5, stopped: "budget" });
  });

  test("a strategy that only repeats itself is stopped", async () => {
    const run = start(
      Array.from({ length: idleAskLimit + 50 }, () => plan(0, 1)),
      1,
    );
    const result = await runSearch({ ...run, evaluations: 5 });
    expect(result).toMatchObject({ evaluations: 1, cacheHits: idleAskLimit, stopped: "idle" });
  });

  test.each([0, -1, 1.5, Number.NaN])("refuses a budget of %s", async (evaluations) => {
    await expect(runSearch({ ...start([plan(0, 1)]), evaluations })).rejects.toMatchObject({
      code: "COPPICE_USAGE",
    });
  });
});

describe("failures", () => {
  const broken = (p: Plan) => planKey(p, model) === planKey(plan(2, 3), model);

  test.each([
    ["the executor rejects a plan", new CoppiceError("COPPICE_BACKEND_FAILED", "out of range"), fitness],
    ["a plan ends its worker", new CoppiceError("COPPICE_BACKEND_CRASHED", "worker gone"), fitness],
    ["a sample scores NaN", undefined, (p: Plan) => (broken(p) ? Number.NaN : fitness(p))],
  ])("the run goes on when %s", async (_, failure, landscape) => {
    const strategy = new FixedStrategy([plan(0, 1), plan(2, 3), plan(4, 5), plan(2, 3)]);
    const executor = toyExecutor(landscape, failure ? { fails: broken, failure } : {});
    const journal = memoryJournal();
    const result = await runSearch({ strategy, executor, model, evaluations: 10, journal });
    expect(strategy.told.map((scored) => scored.fitness === Number.NEGATIVE_INFINITY)).toEqual([
      false,
      true,
      false,
      true,
    ]);
    expect(strategy.told[1]?.scores).toHaveLength(0);
    expect(result).toMatchObject({ evaluations: 3, failures: 1 });
    expect(result.finalists).toHaveLength(2);
    expect(result.history[1]?.fitness).toBeNull();
    expect(journal.records.map((record) => record.type)).toEqual(["evaluated", "failed", "evaluated"]);

    const again = new FixedStrategy([plan(0, 1), plan(2, 3), plan(4, 5), plan(2, 3)]);
    const idle = toyExecutor(fitness);
    const resumed = await runSearch({ strategy: again, executor: idle, model, evaluations: 10, journal });
    expect(idle.evaluated).toEqual([]);
    expect(resumed).toMatchObject({ evaluations: 3, failures: 1, replayed: 3 });
    expect(again.told).toEqual(strategy.told);
  });

  test.each([
    ["a retryable error", new CoppiceError("COPPICE_BACKEND_FAILED", "busy", { retryable: true })],
    ["a device that is lost for good", new CoppiceError("COPPICE_BACKEND_LOST", "gone", { retryable: true })],
    ["an unknown error", new TypeError("x is undefined")],
  ])("%s is the run's own and ends it", async (_, failure) => {
    const executor = toyExecutor(fitness, { fails: broken, failure });
    const plans = [plan(0, 1), plan(2, 3), plan(4, 5)];
    const journal = memoryJournal();
    const strategy = new FixedStrategy(plans);
    await expect(runSearch({ strategy, executor, model, evaluations: 10, journal })).rejects.toBe(failure);
    // Started again, it goes on where it was, and no plan is blamed.
    const sound = toyExecutor(fitness);
    const again = new FixedStrategy(plans);
    const result = await runSearch({ strategy: again, executor: sound, model, evaluations: 10, journal });
    expect(result).toMatchObject({ evaluations: 3, failures: 0 });
  });

  test("workers that end at one plan after the other end the run, and no plan is remembered as failed", async () => {
    const failure = new CoppiceError("COPPICE_BACKEND_CRASHED", "out of memory");
    const good = planKey(plan(0, 1), model);
    const executor = toyExecutor(fitness, { fails: (p) => planKey(p, model) !== good, failure });
    const journal = memoryJournal();
    const strategy = new FixedStrategy([plan(0, 1), plan(2, 3), plan(3, 4), plan(4, 5), plan(0, 5)]);
    const run = runSearch({ strategy, executor, model, evaluations: 10, journal });
    await expect(run).rejects.toBe(failure);
    expect(journal.records.map((record) => record.type)).toEqual(["evaluated"]);
  });

  test("a fault that hits every plan ends the run early and is not remembered", async () => {
    const failure = new CoppiceError("COPPICE_BACKEND_FAILED", "no such operator");
    const executor = toyExecutor(fitness, { fails: () => true, failure });
    const journal = memoryJournal();
    const strategy = new Climber(model, 1);
    await expect(runSearch({ strategy, executor, model, evaluations: 500, journal, batch: 4 })).rejects.toBe(
      failure,
    );
    expect(journal.records).toEqual([]);
  });

  test("plans that do not fit the model and too many plans are the strategy's fault", async () => {
    await expect(runSearch({ ...start([plan(0)]), evaluations: 10 })).rejects.toMatchObject({
      code: "COPPICE_PLUGIN_INVALID",
      message: expect.stringContaining("keep=1"),
    });
    const greedy = { ask: () => [plan(0, 1), plan(0, 2)].map(candidate), tell: () => {} };
    await expect(
      runSearch({ strategy: greedy, executor: toyExecutor(fitness), model, evaluations: 10, batch: 1 }),
    ).rejects.toMatchObject({ code: "COPPICE_PLUGIN_INVALID" });
  });

  test("a strategy without any plan is an error, not an empty result", async () => {
    await expect(runSearch({ ...start([]), evaluations: 10 })).rejects.toMatchObject({
      code: "COPPICE_PLUGIN_INVALID",
    });
  });
});

describe("notifications", () => {
  test("every candidate and the progress of new ones", async () => {
    const emitter = new RunEmitter();
    const seen: unknown[][] = [];
    const progress: number[] = [];
    emitter.on("candidate", (c) => seen.push([c.evaluation, c.cached, c.best]));
    emitter.on("progress", (p) => {
      progress.push(p.done);
      expect(p.etaMs).toBeGreaterThanOrEqual(0);
      expect(p.total).toBe(7);
    });
    const plans = [plan(0, 1), plan(2, 3), plan(1, 0)];
    await runSearch({ ...start(plans, 1), evaluations: 7, emitter });
    const best = Math.max(fitness(plan(0, 1)), fitness(plan(2, 3)));
    const first = expect.closeTo(fitness(plan(0, 1)), 12);
    expect(seen).toEqual([
      [1, false, first],
      [2, false, expect.closeTo(best, 12)],
      [2, true, expect.closeTo(best, 12)],
    ]);
    expect(progress).toEqual([1, 2]);
  });

  test("onBest gets every new best, canonical, before the next ask", async () => {
    const order: string[] = [];
    const strategy = new FixedStrategy([plan(1, 0), plan(2, 3), plan(4, 5)], 1);
    const ask = strategy.ask.bind(strategy);
    strategy.ask = (limit) => {
      order.push("ask");
      return ask(limit);
    };
    const landscape = (p: Plan) => -(p.layers[0]?.experts[0] ?? 0);
    await runSearch({
      strategy,
      executor: toyExecutor(landscape),
      model,
      evaluations: 9,
      onBest: async (best) => {
        await new Promise((resolve) => setTimeout(resolve, 5));
        order.push(`best ${best.candidate.plan.layers[0]?.experts}`);
      },
    });
    expect(order).toEqual(["ask", "best 0,1", "ask", "ask", "ask"]);
  });

  test("finalists are distinct, best first, and at most as many as wanted", async () => {
    const result = await runSearch({
      strategy: new Climber(model, 5),
      executor: toyExecutor(fitness),
      model,
      evaluations: 40,
      finalists: 6,
    });
    const ranked = result.finalists.map((finalist) => finalist.fitness);
    expect(ranked).toEqual([...ranked].sort((a, b) => b - a));
    expect(new Set(result.finalists.map((finalist) => finalist.key)).size).toBe(6);
    expect(result.finalists[0]).toEqual(result.best);
    const all = result.history.map((step) => step.fitness as number).sort((a, b) => b - a);
    expect(ranked).toEqual(all.slice(0, 6));
  });
});

test("a probe costs an evaluation but is no result, until it is proposed as one", async () => {
  const landscape = (p: Plan) => (p.layers[0]?.experts.length ?? 6) + fitness(p) / 100;
  const wide = plan(0, 1, 2, 3);
  const propose = (plans: readonly (Plan | { probe: Plan })[]) => {
    const left = plans.map((p) => ("probe" in p ? { ...candidate(p.probe), probe: true } : candidate(p)));
    return { ask: (limit: number) => left.splice(0, Math.min(limit, 1)), tell: () => {} };
  };
  const run = { executor: toyExecutor(landscape), model, evaluations: 10 };
  const result = await runSearch({ ...run, strategy: propose([{ probe: wide }, plan(0, 1), plan(2, 3)]) });
  expect(result.evaluations).toBe(3);
  expect(result.best.candidate.plan.layers[0]?.experts).toHaveLength(2);
  expect(result.finalists).toHaveLength(2);
  expect(result.history.map((step) => step.probe ?? false)).toEqual([true, false, false]);
  expect(result.history[0]?.best).toBeNull();
  const upgraded = await runSearch({ ...run, strategy: propose([{ probe: wide }, plan(0, 1), wide]) });
  expect(upgraded.best.candidate.plan.layers[0]?.experts).toHaveLength(4);
  expect(upgraded).toMatchObject({ evaluations: 2, cacheHits: 1 });
});

test("an aborted run says so and keeps what it had", async () => {
  const controller = new AbortController();
  const journal = memoryJournal();
  const executor = toyExecutor(fitness, {
    fails: (_, evaluation) => {
      if (evaluation === 20) controller.abort();
      return false;
    },
  });
  const run = { strategy: new Climber(model, 1), executor, model, evaluations: 60, journal };
  await expect(runSearch({ ...run, signal: controller.signal })).rejects.toMatchObject({
    code: "COPPICE_ABORTED",
  });
  expect(journal.records.length).toBeGreaterThanOrEqual(16);
  expect(journal.records.length).toBeLessThan(30);
});

function candidate(p: Plan) {
  return { plan: p, phase: "test", origin: "test" };
}
