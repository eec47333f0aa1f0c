import { type Executor, type Plan, planKey, RunEmitter, type SearchStrategy } from "@coppice/core";
import { separableLandscape, toyExecutor, toyModel } from "@coppice/plugin-kit";
import { memoryJournal, type RunJournal, runSearch, type SearchOptions } from "@coppice/search";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { Climber, comparable, FixedStrategy, keepEverywhere } from "./strategies.js";

const model = toyModel();
const { fitness } = separableLandscape(model);

/** The time that `performance.now` tells, in milliseconds. */
let now = 0;
beforeEach(() => {
  now = 0;
  vi.spyOn(performance, "now").mockImplementation(() => now);
});
afterEach(() => {
  vi.restoreAllMocks();
});

/** Every plan takes ten seconds; the plan after `dies` ends the process. */
function slowExecutor(dies = Number.POSITIVE_INFINITY): Executor & { readonly evaluated: readonly Plan[] } {
  const inner = toyExecutor(fitness);
  return {
    ...inner,
    evaluated: inner.evaluated,
    async evaluate(plans, options) {
      now += 10_000 * plans.length;
      if (inner.evaluated.length >= dies) throw new Error("was killed");
      return inner.evaluate(plans, options);
    },
  };
}

async function search(journal: RunJournal, more: Partial<SearchOptions>, dies?: number) {
  const executor = slowExecutor(dies);
  const strategy = new Climber(model, 3);
  const result = await runSearch({ strategy, model, executor, evaluations: 200, batch: 4, journal, ...more });
  return { result, evaluated: executor.evaluated.map((plan) => planKey(plan, model)) };
}

describe("seconds", () => {
  test("end the run after the round in which they are spent", async () => {
    const { result } = await search(memoryJournal(), { seconds: 90 });
    // Rounds of at most four new plans, ten seconds each.
    expect(result.stopped).toBe("time");
    expect(result.evaluations).toBeGreaterThanOrEqual(9);
    expect(result.evaluations).toBeLessThan(9 + 4);
    expect((await search(memoryJournal(), { seconds: 1e9, evaluations: 12 })).result.stopped).toBe("budget");
  });

  test("count over all processes, and a run repeated stops at the same place without evaluating anything", async () => {
    const whole = await search(memoryJournal(), { seconds: 200 });
    const journal = memoryJournal();
    await expect(search(journal, { seconds: 200 }, 8)).rejects.toThrow("was killed");
    now = 5_000_000; // The machine stood still for a while, which is no time of the run.
    const resumed = await search(journal, { seconds: 200 });
    expect(comparable(resumed.result)).toEqual(comparable(whole.result));
    expect(resumed.evaluated.length).toBeLessThan(whole.evaluated.length);
    const again = await search(journal, { seconds: 200 });
    expect(again.evaluated).toEqual([]);
    expect(comparable(again.result)).toEqual(comparable(whole.result));
  });

  test("are kept only where they are a budget", async () => {
    const journal = memoryJournal();
    await search(journal, { evaluations: 8 });
    expect(journal.records.filter(({ type }) => type === "time")).toEqual([]);
  });

  test("bound the time that progress promises", async () => {
    const emitter = new RunEmitter();
    const promised: number[] = [];
    emitter.on("progress", ({ etaMs }) => promised.push(etaMs ?? 0));
    await search(memoryJournal(), { seconds: 100, emitter });
    expect(Math.max(...promised)).toBeLessThanOrEqual(100_000);
  });

  test("must be more than 0, and a damaged record of them is refused", async () => {
    await expect(search(memoryJournal(), { seconds: 0 })).rejects.toThrow(/seconds is 0/);
    const journal = memoryJournal([{ type: "time", evaluations: 4, seconds: "9" }]);
    await expect(search(journal, { seconds: 9 })).rejects.toThrow(/record of time has the evaluations 4/);
  });
});

describe("patience", () => {
  test("ends the run when so many evaluations brought no better plan", async () => {
    const ranked = Array.from({ length: 8 }, (_, i) => keepEverywhere(model, [i % 4, i < 4 ? 4 : 5])).sort(
      (a, b) => fitness(b) - fitness(a),
    );
    // The best is third; one plan a round.
    const order = [2, 1, 0, 3, 4, 5, 6, 7].map((i) => ranked[i] as Plan);
    const run = (patience: number) =>
      runSearch({
        strategy: new FixedStrategy(order, 1),
        ...{ executor: toyExecutor(fitness), model, evaluations: 100, patience },
      });
    expect(await run(1)).toMatchObject({ evaluations: 4, stopped: "patience" });
    expect(await run(3)).toMatchObject({ evaluations: 6, stopped: "patience" });
    expect(await run(6)).toMatchObject({ evaluations: 8, stopped: "strategy" });
    await expect(run(0)).rejects.toThrow(/patience/);
  });

  test.each([
    ["patience", { patience: 2 }, 7],
    ["time", { seconds: 1 }, 5],
  ])("and %s wait for a result where probes come first", async (stopped, limit, evaluations) => {
    const plans = Array.from({ length: 8 }, (_, i) => keepEverywhere(model, [i % 4, i < 4 ? 4 : 5])).sort(
      (a, b) => fitness(b) - fitness(a),
    );
    const fixed = new FixedStrategy(plans, 1);
    const strategy: SearchStrategy = {
      ask: (most) => {
        const probe = fixed.told.length < 4;
        return fixed.ask(most).map((candidate) => (probe ? { ...candidate, probe } : candidate));
      },
      tell: (results) => fixed.tell(results),
    };
    const result = await runSearch({
      ...{ strategy, executor: slowExecutor(), model, evaluations: 100 },
      ...limit,
    });
    expect(result).toMatchObject({ stopped, evaluations });
    expect(result.best.fitness).toBe(fitness(plans[4] as Plan));
  });

  test("ends a resumed run at the same place", async () => {
    const whole = await search(memoryJournal(), { patience: 12 });
    expect(whole.result.stopped).toBe("patience");
    const journal = memoryJournal();
    await expect(search(journal, { patience: 12 }, 10)).rejects.toThrow("was killed");
    const resumed = await search(journal, { patience: 12 });
    expect(comparable(resumed.result)).toEqual(comparable(whole.result));
  });
});
