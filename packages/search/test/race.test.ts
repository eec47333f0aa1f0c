import {
  type Candidate,
  type Executor,
  type Plan,
  planKey,
  Rng,
  type Scored,
  type SearchStrategy,
} from "@coppice/core";
import { separableLandscape } from "@coppice/plugin-kit";
import { memoryJournal, PlanEvaluator, type RunJournal, runSearch } from "@coppice/search";
import { describe, expect, test } from "vitest";
import { evaluationRecords } from "../src/journal.js";
import { lostAfter } from "../src/race.js";
import { model, type NoisyExecutor, noisyExecutor, noisyScores, Racer, samples } from "./noisy-races.js";
import { comparable, keepEverywhere } from "./strategies.js";

async function race(executor: NoisyExecutor, journal: RunJournal = memoryJournal()) {
  const strategy = new Racer(3);
  const result = await runSearch({ strategy, model, executor, evaluations: 60, batch: 4, journal });
  return { result, told: strategy.told, journal };
}

describe("lostAfter", () => {
  test("decides by the chance that the mean over all samples is above the rival's", () => {
    const rng = Rng.fromSeed(1);
    let lost = 0;
    for (let run = 0; run < 300; run++) {
      const rival = Float64Array.from({ length: 101 }, () => rng.normal());
      const shift = 0.3 * rng.normal();
      const scores = rival.map((value) => value + shift + 0.7 * rng.normal());
      const parts = 4;
      let expected: number | undefined;
      for (let known = 1; known < parts && expected === undefined; known++) {
        const d = [...scores.keys()]
          .filter((i) => i % parts < known)
          .map((i) => (scores[i] as number) - (rival[i] as number));
        const mean = d.reduce((a, b) => a + b, 0) / d.length;
        const sd = Math.sqrt(d.reduce((a, b) => a + (b - mean) ** 2, 0) / (d.length - 1));
        const z = mean / (sd * Math.sqrt(1 / d.length - 1 / scores.length));
        // -1.2816 is the 0.1 quantile of the standard normal distribution.
        if (z < -1.2816) expected = known;
      }
      expect(lostAfter({ scores, rival, parts, known: 4 })).toBe(expected);
      // What is known beyond the decision does not change it.
      expect(lostAfter({ scores, rival, parts, known: expected ?? 3 })).toBe(expected);
      if (expected !== undefined) lost++;
    }
    expect(lost).toBeGreaterThan(50);
    expect(lost).toBeLessThan(250);
  });

  test("never ends a race of equals, nor after the last part", () => {
    const rival = new Float64Array(40).fill(0.5);
    expect(lostAfter({ scores: rival.slice(), rival, parts: 4, known: 4 })).toBeUndefined();
    const worse = rival.map((_, i) => (i % 4 === 3 ? 0 : 0.5));
    expect(lostAfter({ scores: worse, rival, parts: 4, known: 4 })).toBeUndefined();
    expect(lostAfter({ scores: rival.map((value) => value - 0.1), rival, parts: 4, known: 4 })).toBe(1);
  });
});

describe("candidates of a batch that race", () => {
  const [rival, one, two, three] = [
    [0, 1],
    [2, 3],
    [4, 5],
    [6, 7],
  ].map((experts) => keepEverywhere(model, experts)) as [Plan, Plan, Plan, Plan];
  const racers = [one, two].map((plan) => ({ plan, rival: planKey(rival, model) }));

  /** An evaluator that knows the rival, and whose executor gives the same scores to all after `before`. */
  async function evaluating(
    before: (plan: Plan, part: number, signal: AbortSignal) => Promise<void>,
    busyParts?: number,
  ) {
    const inner = noisyExecutor({ parts: true, ...(busyParts && { busyParts }) });
    const executor: Executor = {
      ...inner,
      async evaluate(plans, { part, signal } = {}) {
        if (part !== undefined) await before(plans[0] as Plan, part, signal as AbortSignal);
        return plans.map(() => ({ scores: new Float64Array(part === undefined ? samples : samples / 4) }));
      },
    };
    const evaluator = new PlanEvaluator({ model, executor });
    await evaluator.evaluate([{ plan: rival }]);
    return evaluator;
  }

  test("go on one by one, so that none waits for another", async () => {
    const done: string[] = [];
    let finished = () => {};
    const second = new Promise<void>((resolve) => {
      finished = resolve;
    });
    const evaluator = await evaluating(async (plan, part) => {
      const name = planKey(plan, model) === planKey(one, model) ? "one" : "two";
      if (name === "one" && part === 1) await second;
      done.push(`${name} ${part}`);
      if (name === "two" && part === 3) finished();
    });
    const [a, b] = await evaluator.evaluate(racers);
    expect([a?.scores.length, b?.scores.length]).toEqual([samples, samples]);
    expect(done.indexOf("two 3")).toBeLessThan(done.indexOf("one 1"));
    expect(done.filter((step) => step.startsWith("one"))).toEqual(["one 0", "one 1", "one 2", "one 3"]);
  });

  test("evaluate further parts at once where they are too few to keep the executor busy", async () => {
    const asked: string[] = [];
    const evaluator = await evaluating(async (plan, part) => {
      asked.push(`${planKey(plan, model) === planKey(one, model) ? "one" : "two"} ${part}`);
      await new Promise((resolve) => setImmediate(resolve));
    }, 5);
    await evaluator.evaluate(racers);
    expect(asked.slice(0, 4)).toEqual(["one 0", "one 1", "two 0", "two 1"]);
    expect(asked).toHaveLength(8);
    asked.length = 0;
    await evaluator.evaluate([{ plan: three, rival: planKey(rival, model) }]);
    expect(asked).toEqual(["two 0", "two 1", "two 2", "two 3"]);
  });

  test("are all stopped by an error that is no candidate's, before it is thrown", async () => {
    let stopped = false;
    const evaluator = await evaluating(async (plan, part, signal) => {
      if (planKey(plan, model) === planKey(one, model)) throw new Error("the network is gone");
      await new Promise((resolve) => signal.addEventListener("abort", resolve));
      stopped = part === 0;
      throw new Error("stopped");
    });
    await expect(evaluator.evaluate(racers)).rejects.toThrow("the network is gone");
    expect(stopped).toBe(true);
    expect(evaluator.has(planKey(two, model))).toBe(false);
  });
});

describe("a run whose candidates race", () => {
  test("tells and journals the same however many parts are evaluated ahead of their need", async () => {
    const plain = noisyExecutor({ parts: true });
    const expected = await race(plain);
    for (const busyParts of [4, 8, 100]) {
      const executor = noisyExecutor({ parts: true, busyParts });
      const found = await race(executor);
      expect(found.told).toEqual(expected.told);
      expect(comparable(found.result)).toEqual(comparable(expected.result));
      expect(evaluationRecords(found.journal.records, "search")).toEqual(
        evaluationRecords(expected.journal.records, "search"),
      );
      expect(executor.done() > plain.done()).toBe(busyParts > 4);
    }
  });

  test("tells the same whether or not the executor can evaluate parts, and saves work when it can", async () => {
    const [inParts, whole] = [noisyExecutor({ parts: true }), noisyExecutor({ parts: false })];
    const a = await race(inParts);
    const b = await race(whole);
    expect(a.told).toEqual(b.told);
    expect(comparable(a.result)).toEqual(comparable(b.result));
    expect(whole.done()).toBe(60 * samples);
    expect(inParts.done()).toBeLessThan(0.8 * whole.done());
    const lost = a.told.filter((scored) => scored.samples !== undefined);
    expect(lost.length).toBeGreaterThan(10);
    for (const { scores, samples: seen } of lost) {
      expect(scores).toHaveLength(0);
      expect([16, 32, 48]).toContain(seen);
    }
    // Only plans that were evaluated on all samples are results.
    const full = a.told.filter((scored) => scored.samples === undefined);
    expect(
      a.result.finalists.every(
        ({ key, scores }) => scores.length === samples && full.some((f) => f.key === key),
      ),
    ).toBe(true);
    expect(a.result.finalists.some(({ candidate }) => "rival" in candidate)).toBe(false);
    for (const { candidate, scores, fitness } of full) {
      expect(scores).toEqual(noisyScores(candidate.plan));
      expect(fitness).toBeCloseTo(scores.reduce((sum, score) => sum + score, 0) / samples, 12);
    }
  });

  test("estimates a loser's fitness by the difference to its rival on the samples of both", async () => {
    const { told } = await race(noisyExecutor({ parts: true }));
    for (const { candidate, fitness, samples: seen } of told) {
      if (seen === undefined) continue;
      const rival = told.find(({ key }) => key === candidate.rival) as Scored;
      const own = noisyScores(candidate.plan);
      const shared = [...own.keys()].filter((i) => i % 4 < (4 * seen) / samples);
      const difference = shared.reduce((sum, i) => sum + (own[i] as number) - (rival.scores[i] as number), 0);
      expect(fitness).toBeCloseTo(rival.fitness + difference / shared.length, 12);
      expect(fitness).toBeLessThan(rival.fitness);
    }
  });

  test("goes on after a kill with the same result and nothing evaluated twice", async () => {
    const whole = noisyExecutor({ parts: true });
    const expected = await race(whole);
    for (const calls of [3, 17, 40, 75]) {
      let count = 0;
      const journal = memoryJournal();
      const first = noisyExecutor({ parts: true, fails: () => count++ === calls });
      await expect(race(first, journal)).rejects.toThrow("stopped");
      const kept = evaluationRecords(journal.records, "search").reduce(
        (sum, record) => sum + (record.type === "evaluated" ? record.scores.length : 0),
        0,
      );
      const second = noisyExecutor({ parts: true });
      const { result } = await race(second, memoryJournal(JSON.parse(JSON.stringify(journal.records))));
      expect(comparable(result)).toEqual(comparable(expected.result));
      expect(kept + second.done()).toBe(whole.done());
    }
  });

  test("evaluates the rest of a loser that is proposed again as a result", async () => {
    const executor = noisyExecutor({ parts: true });
    const [good, poor] = [keepEverywhere(model, bestExperts(3)), keepEverywhere(model, worstExperts(3))];
    const candidate = (plan: Plan, rival?: string): Candidate => ({
      plan,
      phase: "test",
      origin: "test",
      ...(rival && { rival }),
    });
    const asks = [
      [candidate(good)],
      [candidate(poor, planKey(good, model))],
      [candidate(poor)],
      [candidate(poor, planKey(good, model)), candidate(poor)],
    ];
    const told: Scored[] = [];
    const strategy = {
      ask: () => asks.shift() ?? [],
      tell: (results: readonly Scored[]) => told.push(...results),
    };
    const result = await runSearch({ strategy, model, executor, evaluations: 9 });
    expect(told.map((scored) => scored.samples)).toEqual([undefined, 16, undefined, undefined, undefined]);
    expect(executor.done()).toBe(2 * samples);
    expect(result.evaluations).toBe(2);
    expect(result.finalists).toHaveLength(2);
    expect(told[2]?.scores).toEqual(noisyScores(poor));
  });

  test("refuses a rival that nobody knows in full", async () => {
    const ask = (rival: string): SearchStrategy => ({
      ask: () => [{ plan: keepEverywhere(model, [0, 1, 2]), phase: "t", origin: "t", rival }],
      tell: () => {},
    });
    await expect(
      runSearch({ strategy: ask("nobody"), model, executor: noisyExecutor({ parts: true }), evaluations: 1 }),
    ).rejects.toMatchObject({ code: "COPPICE_PLUGIN_INVALID" });
  });

  test("refuses a journal whose race does not fit its scores", () => {
    const record = { type: "evaluated", scope: "search", key: "k", scores: [1, 2] };
    const read = (raced: unknown) => evaluationRecords([{ ...record, race: raced }] as never, "search");
    expect(read({ known: 1, parts: 4, samples: 8 })).toHaveLength(1);
    for (const raced of [
      null,
      { known: 1, parts: 4, samples: 9e15 },
      { known: 4, parts: 4, samples: 2 },
      { known: 0, parts: 4, samples: 8 },
      { known: 1, parts: 4, samples: 12 },
      { known: "1", parts: 4, samples: 8 },
    ]) {
      expect(() => read(raced)).toThrow(expect.objectContaining({ code: "COPPICE_RUN_JOURNAL" }));
    }
  });
});

const values = separableLandscape(model).values[0] as Float64Array;
const ranked = [...values.keys()].sort((a, b) => (values[b] as number) - (values[a] as number));
const bestExperts = (count: number) => ranked.slice(0, count);
const worstExperts = (count: number) => ranked.slice(-count);
