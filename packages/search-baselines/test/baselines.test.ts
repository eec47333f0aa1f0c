import { readFileSync } from "node:fs";
import { Rng, type SearchContext } from "@coppice/core";
import { separableLandscape, toyExecutor, toyModel } from "@coppice/plugin-kit";
import { runSearch } from "@coppice/search";
import { exhaustive, greedy, oneShot, random } from "@coppice/search-baselines";
import { describe, expect, test } from "vitest";

const model = toyModel();
const { fitness, values, optimum } = separableLandscape(model);
const scores = new Map([
  ["perfect", values],
  ["worst", values.map((row) => row.map((value) => -value))],
]);
const context = (seed = 1): SearchContext => ({ model, rng: Rng.fromSeed(seed), evaluations: 200, scores });

type AnyPlugin = { create: typeof random.create };

async function search(plugin: AnyPlugin, options: unknown, evaluations = 200, seed = 1) {
  const strategy = await plugin.create(options, context(seed));
  const executor = toyExecutor(fitness);
  const result = await runSearch({ strategy, model, executor, evaluations });
  return { ...result, plans: executor.evaluated };
}

describe("random", () => {
  test("draws every expert equally often, and no plan twice", async () => {
    const { plans, cacheHits } = await search(random, { keep: 2 }, 1500);
    expect(cacheHits).toBe(0);
    const counts = new Map<number, number>();
    for (const plan of plans) {
      for (const expert of plan.layers[0]?.experts ?? []) counts.set(expert, (counts.get(expert) ?? 0) + 1);
    }
    expect([...counts.keys()].sort()).toEqual([0, 1, 2, 3, 4, 5]);
    for (const count of counts.values()) expect(Math.abs(count - 500)).toBeLessThan(70);
  });

  test("ends when every plan was tried", async () => {
    const tiny = toyModel({ layers: 1, experts: 5 });
    const strategy = await random.create({ keep: 2 }, { ...context(), model: tiny });
    const executor = toyExecutor(separableLandscape(tiny).fitness);
    const result = await runSearch({ strategy, model: tiny, executor, evaluations: 500 });
    expect(result).toMatchObject({ evaluations: 10, stopped: "strategy" });
  });
});

describe("one-shot", () => {
  test("is the plan of its criterion", async () => {
    const perfect = await search(oneShot, { keep: 3, criterion: "perfect" });
    expect(perfect).toMatchObject({ evaluations: 1, stopped: "strategy" });
    expect(perfect.best.fitness).toBeCloseTo(optimum(3), 12);
    expect(perfect.best.candidate.origin).toBe("seed:perfect");
  });

  test("refuses a criterion without scores", async () => {
    await expect(oneShot.create({ keep: 3, criterion: "reap" }, context())).rejects.toMatchObject({
      code: "COPPICE_PLUGIN_OPTIONS",
      message: expect.stringContaining("there are perfect, worst"),
    });
  });
});

describe("greedy", () => {
  test("reaches the optimum of a separable landscape from the worst plan", async () => {
    const { best, history } = await search(greedy, { keep: 3, start: "worst" });
    expect(best.fitness).toBeCloseTo(optimum(3), 12);
    // From the worst plan of 3 layers, 3 swaps each with 9 alternatives per swap, and the rounds that confirm it.
    const reached = history.findIndex((step) => step.fitness === best.fitness) + 1;
    expect(reached).toBeLessThanOrEqual(1 + 9 * 9);
  });

  test("starts again when nothing improves, and ends where nothing can be swapped", async () => {
    const { history } = await search(greedy, { keep: 3 }, 300);
    expect(history.filter((step) => step.origin === "random").length).toBeGreaterThan(1);
    const whole = await search(greedy, { keep: 6 }, 300);
    expect(whole).toMatchObject({ evaluations: 1, stopped: "strategy" });
  });
});

test.each([
  ["random", random, {}],
  ["one-shot", oneShot, { criterion: "perfect" }],
  ["greedy", greedy, {}],
  ["greedy backward", greedy, { mode: "backward" }],
  ["exhaustive", exhaustive, {}],
] as [string, AnyPlugin, object][])(
  "%s refuses to keep fewer experts than top-k",
  async (_, plugin, options) => {
    await expect(plugin.create({ keep: 1, ...options }, context())).rejects.toMatchObject({
      code: "COPPICE_PLAN_KEEP",
    });
  },
);

test("package.json lists what the package exports", async () => {
  const plugins = await import("@coppice/search-baselines");
  const { coppice } = JSON.parse(readFileSync(new URL("../package.json", import.meta.url), "utf8"));
  expect(coppice.plugins).toHaveLength(4);
  for (const { export: name, ...entry } of coppice.plugins) {
    const { kind, pluginName, contract, summary } = plugins[name as "random"];
    expect({ kind, name: pluginName, contract, summary }).toEqual(entry);
  }
});
