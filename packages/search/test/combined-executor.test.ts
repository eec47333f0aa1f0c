import { type Executor, type Plan, planKey, Rng, raceParts } from "@coppice/core";
import { toyModel } from "@coppice/plugin-kit";
import { type CombinedTask, combineExecutors, memoryJournal, runSearch } from "@coppice/search";
import { describe, expect, test } from "vitest";
import { Climber, comparable, keepEverywhere } from "./strategies.js";

const model = toyModel({ layers: 2, experts: 8 });
const plan = keepEverywhere(model, [0, 1, 2]);

interface FakeExecutor extends Executor {
  done(): number;
  readonly disposed: boolean;
}

/** Scores are what `score` says, of all samples or of those of a part. */
function fakeExecutor(samples: number, score: (plan: Plan, sample: number) => number): FakeExecutor {
  let done = 0;
  let disposed = false;
  const parts = raceParts(samples);
  const dispose = async () => {
    disposed = true;
  };
  return {
    preferredBatch: 2,
    ...(parts > 1 && { parts }),
    async evaluate(plans, { part, signal } = {}) {
      signal?.throwIfAborted();
      return plans.map((plan) => {
        const all = Array.from({ length: samples }, (_, i) => i);
        const wanted = part === undefined ? all : all.filter((i) => i % parts === part);
        done += wanted.length;
        const scores = Float64Array.from(wanted, (i) => score(plan, i));
        return { scores, correct: Uint8Array.from(scores, (value) => Number(value > 0.5)) };
      });
    },
    done: () => done,
    get disposed() {
      return disposed;
    },
    work: () => ({
      tokenLayers: done,
      avoidedTokenLayers: 1,
      expertTokens: 2 * done,
      avoidedExpertTokens: 4,
    }),
    dispose,
    [Symbol.asyncDispose]: dispose,
  };
}

const noise = (task: number) => (plan: Plan, sample: number) =>
  Rng.fromSeed(Number.parseInt(planKey(plan, model).slice(0, 7), 16) * 1000 + 100 * task + sample).uniform();

/** Tasks of these sizes with random scores. */
function tasksOf(sizes: readonly number[], more: Partial<CombinedTask> = {}): CombinedTask[] {
  return sizes.map((samples, t) => ({
    name: `task ${t}`,
    executor: fakeExecutor(samples, noise(t)),
    weight: t + 1,
    least: 0,
    samples,
    ...more,
  }));
}

const meanOf = (values: ArrayLike<number>) =>
  Array.from(values).reduce((sum, value) => sum + value, 0) / values.length;

describe("combineExecutors", () => {
  test("gives the weighted mean of the tasks' means, whatever their sizes", async () => {
    const sizes = [33, 64, 7];
    await using executor = combineExecutors(tasksOf(sizes));
    const [result] = await executor.evaluate([plan]);
    const means = sizes.map((size, t) => meanOf(Array.from({ length: size }, (_, i) => noise(t)(plan, i))));
    const expected = (1 * means[0]! + 2 * means[1]! + 3 * means[2]!) / 6;
    expect(result?.scores).toHaveLength(104);
    expect(meanOf(result!.scores)).toBeCloseTo(expected, 12);
    // Its share would pass over the weights.
    expect(result?.correct).toBeUndefined();
    expect(executor.work()).toEqual({
      tokenLayers: 104,
      avoidedTokenLayers: 3,
      expertTokens: 208,
      avoidedExpertTokens: 12,
    });
    // The task of 7 samples cannot be cut.
    expect(executor.parts).toBeUndefined();
  });

  test("its parts are the samples of the whole whose index is theirs modulo the parts", async () => {
    for (const sizes of [
      [33, 34, 35],
      [32, 64],
      [47, 50, 32, 61],
    ]) {
      await using executor = combineExecutors(tasksOf(sizes));
      const [whole] = await executor.evaluate([plan]);
      expect(executor.parts).toBe(4);
      for (let part = 0; part < 4; part++) {
        const [some] = await executor.evaluate([plan], { part });
        const belongs = (_: number, i: number) => i % 4 === part;
        expect(some?.scores).toEqual(whole?.scores.filter(belongs));
      }
    }
  });

  test("a search races as it would without parts, with less work", async () => {
    const search = async (known: boolean) => {
      const executors = [40, 53].map((size, t) =>
        fakeExecutor(size, (plan, i) => 0.2 * noise(t)(plan, i) + (plan.layers[0]!.experts[0]! + t) / 9),
      );
      const tasks = executors.map((executor, t) => ({
        ...{ name: `task ${t}`, executor, weight: t + 1, least: 0 },
        ...(known && { samples: [40, 53][t] as number }),
      }));
      await using executor = combineExecutors(tasks);
      const climber = new Climber(model, 3);
      let best: { key: string; fitness: number } | undefined;
      const result = await runSearch({
        strategy: {
          ask: (limit) => climber.ask(limit).map((c) => ({ ...c, ...(best && { rival: best.key }) })),
          tell(results) {
            for (const scored of results) {
              const whole = scored.samples === undefined;
              if (whole && scored.fitness > (best?.fitness ?? 0)) best = scored;
            }
            climber.tell(results);
          },
        },
        model,
        executor,
        evaluations: 60,
        batch: 3,
        journal: memoryJournal(),
      });
      return { result: comparable(result), done: executor.work().tokenLayers };
    };
    const [raced, whole] = [await search(true), await search(false)];
    expect(raced.result).toEqual(whole.result);
    expect(raced.done).toBeLessThan(0.9 * whole.done);
  });

  test("a plan that keeps all minimums beats any that does not, and less lacking is better", async () => {
    const rng = Rng.fromSeed(4);
    const leasts = [-20, -3, -1];
    const kept: number[] = [];
    const missed: number[] = [];
    for (let i = 0; i < 300; i++) {
      const scores = leasts.map((least) =>
        Array.from({ length: 1 + rng.integer(5) }, () => least * rng.uniform()),
      );
      const minimums = [-19 * rng.uniform(), undefined, -rng.uniform()];
      await using executor = combineExecutors(
        scores.map((values, t) => ({
          name: `task ${t}`,
          executor: fakeExecutor(values.length, (_, i) => values[i] as number),
          ...{ weight: 3 - t, least: leasts[t] as number, samples: values.length },
          ...(minimums[t] !== undefined && { minimum: minimums[t] }),
        })),
      );
      const [result] = await executor.evaluate([plan]);
      const fitness = meanOf(result!.scores);
      const means = scores.map(meanOf);
      const lacking = means.reduce((sum, value, t) => sum + Math.max(0, (minimums[t] ?? value) - value), 0);
      const lowest = (3 * -20 + 2 * -3 + 1 * -1) / 6;
      const expected = (3 * means[0]! + 2 * means[1]! + 1 * means[2]!) / 6;
      expect(fitness).toBeCloseTo(lacking > 0 ? lowest - lacking : expected, 9);
      (lacking > 0 ? missed : kept).push(fitness);
    }
    expect([kept.length, missed.length].every((count) => count > 50)).toBe(true);
    expect(Math.min(...kept)).toBeGreaterThan(Math.max(...missed));
  });

  test("offers no parts where a minimum needs all samples, or their number is not known", () => {
    expect(combineExecutors(tasksOf([40, 40])).parts).toBe(4);
    expect(combineExecutors(tasksOf([40, 40], { minimum: 0.1 })).parts).toBeUndefined();
    const [first, second] = tasksOf([40, 40]) as [CombinedTask, CombinedTask];
    const { samples: _, ...unknown } = second;
    expect(combineExecutors([first, unknown]).parts).toBeUndefined();
  });

  test("a broken score stays broken, though another task lacks its minimum", async () => {
    const [first, second] = tasksOf([5, 5]) as [CombinedTask, CombinedTask];
    const broken = { ...second, executor: fakeExecutor(5, (_, i) => (i === 3 ? Number.NaN : 1)) };
    await using executor = combineExecutors([{ ...first, minimum: 2 }, broken]);
    const [result] = await executor.evaluate([plan]);
    expect(result?.scores[8]).toBeNaN();
  });

  test("an error in one task ends the others", async () => {
    const [first, second] = tasksOf([5, 5]) as [CombinedTask, CombinedTask];
    let stopped: AbortSignal | undefined;
    const failing: Executor = { ...first.executor, evaluate: () => Promise.reject(new Error("no")) };
    const waiting: Executor = {
      ...second.executor,
      async evaluate(_, { signal } = {}) {
        stopped = signal;
        return [];
      },
    };
    const executor = combineExecutors([
      { ...first, executor: failing },
      { ...second, executor: waiting },
    ]);
    await expect(executor.evaluate([plan])).rejects.toThrow("no");
    expect(stopped?.aborted).toBe(true);
  });

  test("refuses what cannot be weighed, and a wrong number of samples", async () => {
    for (const more of [{ weight: 0 }, { weight: Number.NaN }, { least: -Infinity }, { minimum: Number.NaN }])
      expect(() => combineExecutors(tasksOf([3], more))).toThrowError(/COPPICE_USAGE|expected finite/);
    expect(() => combineExecutors([])).toThrowError(/no tasks/);
    await expect(combineExecutors(tasksOf([3], { samples: 4 })).evaluate([plan])).rejects.toThrow(
      /3 scores for one plan, expected 4/,
    );
  });

  test("disposes the executors of all tasks", async () => {
    const tasks = tasksOf([3, 4]);
    await combineExecutors(tasks).dispose();
    expect(tasks.map(({ executor }) => (executor as FakeExecutor).disposed)).toEqual([true, true]);
  });
});
