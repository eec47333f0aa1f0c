import { readFileSync } from "node:fs";
import { createPlan, createRegistry, type Plan, parsePlan, planKey, Rng } from "@coppice/core";
import { separableLandscape, toyExecutor, toyModel } from "@coppice/plugin-kit";
import { memoryJournal, runSearch, type SearchOptions } from "@coppice/search";
import { type EepOptions, eep, projectToStock } from "@coppice/search-eep";
import { describe, expect, test } from "vitest";

const model = toyModel();
const { fitness, values, optimum } = separableLandscape(model);
const scores = new Map([["perfect", values]]);

async function search(options: EepOptions, run: Partial<SearchOptions> = {}, seed = 1) {
  const evaluations = run.evaluations ?? 100;
  const context = { model, rng: Rng.fromSeed(seed), evaluations, scores: new Map() };
  const strategy = await eep.create(options, context);
  return runSearch({ strategy, model, executor: toyExecutor(fitness), evaluations, ...run });
}

test.each([
  [8, 4],
  [40, 20],
])("breeds half of a batch of %i, and no fewer than its rate", async (batch, bred) => {
  const rates = { eliminationShare: 0, children: 4 };
  const context = { model, rng: Rng.fromSeed(1), evaluations: 300, scores };
  const strategy = await eep.create({ keep: 3, mergeEvaluations: 0, rates }, context);
  for (;;) {
    const candidates = strategy.ask(batch);
    if (candidates.some(({ origin }) => /swap|crossover/.test(origin))) {
      expect(candidates).toHaveLength(bred);
      return;
    }
    strategy.tell(
      candidates.map((candidate) => ({
        candidate,
        key: planKey(candidate.plan, model),
        cached: false,
        fitness: fitness(candidate.plan),
        scores: new Float64Array(1),
      })),
    );
  }
});

describe("options", () => {
  const context = { model, rng: Rng.fromSeed(1), evaluations: 100, scores };
  const bad: [string, unknown, string, string][] = [
    ["keep below top-k", { keep: 1 }, "COPPICE_PLAN_KEEP", "top-k=2"],
    ["keep below a raised top-k", { keep: 3, topK: 4 }, "COPPICE_PLAN_KEEP", "top-k=4"],
    ["keep above the experts", { keep: 7 }, "COPPICE_PLAN_KEEP", "6 experts"],
    ["no keep", {}, "COPPICE_PLUGIN_OPTIONS", "keep"],
    [
      "more groups than layers",
      { keep: 3, groups: 4 },
      "COPPICE_PLUGIN_OPTIONS",
      "groups=4 is more than the 3",
    ],
    ["a seed without scores", { keep: 3, seeds: ["reap"] }, "COPPICE_PLUGIN_OPTIONS", "there are perfect"],
    ["a rate of another preset", { keep: 3, rates: { fromFirst: 1 } }, "COPPICE_PLUGIN_OPTIONS", "fromFirst"],
    ["a rate out of range", { keep: 3, rates: { explore: 2 } }, "COPPICE_PLUGIN_OPTIONS", "rates.explore"],
  ];
  test.each(bad)("%s: refused with the values", async (_, options, code, text) => {
    for (const preset of ["default", "released"]) {
      if (text === "rates.explore" && preset === "released") continue;
      if (text === "fromFirst" && preset === "released") continue;
      const given = { preset, ...(options as object) };
      await expect(eep.create(given, context)).rejects.toMatchObject({
        code,
        message: expect.stringContaining(text),
      });
    }
  });

  test("scores of another shape are refused", async () => {
    const short = new Map([["short", values.slice(1)]]);
    await expect(eep.create({ keep: 3 }, { ...context, scores: short })).rejects.toMatchObject({
      code: "COPPICE_PLUGIN_OPTIONS",
    });
  });

  test("a registry creates it by name from configured defaults", async () => {
    const registry = createRegistry([eep({ keep: 3 })]);
    const strategy = await registry.create("search", "eep", { keep: 2 }, context);
    const plans = strategy.ask(100).filter(({ probe }) => !probe);
    expect(plans.every(({ plan }) => plan.layers.every((layer) => layer.experts.length === 2))).toBe(true);
  });

  test("package.json lists what the package exports", async () => {
    const plugins = await import("@coppice/search-eep");
    const { coppice } = JSON.parse(readFileSync(new URL("../package.json", import.meta.url), "utf8"));
    for (const { export: name, ...entry } of coppice.plugins) {
      const { kind, pluginName, contract, summary } = plugins[name as "eep"];
      expect({ kind, name: pluginName, contract, summary }).toEqual(entry);
    }
  });
});

describe("budget of the default preset", () => {
  const count = (result: Awaited<ReturnType<typeof search>>, phase: string) =>
    result.history.filter((step) => step.phase === phase).length;

  test.each([
    [{}, 30, 40],
    [{ pruneEvaluations: 50 }, 50, 20],
    [{ mergeEvaluations: 25 }, 45, 25],
    [{ mergeEvaluations: 0 }, 70, 0],
    [{ pruneEvaluations: 20, mergeEvaluations: 30 }, 20, 30],
  ])("%j of 70: %i prune, %i merge", async (options, prune, merge) => {
    const result = await search({ keep: 3, ...options }, { evaluations: 70 });
    expect([count(result, "prune"), count(result, "merge")]).toEqual([prune, merge]);
    expect(result.cacheHits).toBe(0);
  });

  test("what a small space cannot use goes to merging", async () => {
    const tiny = toyModel({ layers: 1, experts: 4 });
    const { fitness } = separableLandscape(tiny);
    const context = { model: tiny, rng: Rng.fromSeed(1), evaluations: 100, scores: new Map() };
    const strategy = await eep.create({ keep: 2, pruneEvaluations: 60 }, context);
    const executor = toyExecutor(fitness);
    const result = await runSearch({ strategy, model: tiny, executor, evaluations: 100 });
    expect(result).toMatchObject({ evaluations: 100, cacheHits: 0 });
    // 6 subsets, and probes that keep more.
    expect(count(result, "prune")).toBeLessThan(20);
  });
});

describe("resume", () => {
  test.each([
    ["default", { keep: 3 }],
    ["paper", { keep: 3, preset: "paper" }],
    ["released", { keep: 3, preset: "released" }],
  ] as const)("%s: stopped anywhere, it ends with the same result", async (_, options) => {
    const whole = await search(options);
    for (let k = 3; k < 100; k += 12) {
      const journal = memoryJournal();
      const dying = toyExecutor(fitness, { fails: (_, done) => done === k });
      await expect(search(options, { executor: dying, journal })).rejects.toThrow("was stopped");
      const rest = toyExecutor(fitness);
      const { replayed, ...result } = await search(options, { executor: rest, journal });
      expect(rest.evaluated).toHaveLength(100 - replayed);
      expect(result).toEqual({ ...whole, replayed: undefined });
    }
  });
});

describe("quality", () => {
  test("merging improves on the best subset, by coefficients that other experts deserve", async () => {
    const result = await search({ keep: 3 }, { evaluations: 300 });
    expect(result.best.fitness).toBeGreaterThan(optimum(3) + 0.05);
    expect(result.best.candidate.phase).toBe("merge");
  });
});

describe("projection to a stock plan", () => {
  const mapped = (routerMap: number[][], merge?: number[][]): Plan =>
    createPlan(toyModel({ experts: 4 }), [
      { layer: 1, experts: [0, 1], topK: 1, routerMap, ...(merge && { merge }) },
      { layer: 2, experts: [2, 3] },
    ]);

  test("takes the dominant experts, one per slot, and keeps the weights of the slots", () => {
    const merge = [
      [0.5, 0.5, 0, 0],
      [0, 0.9, 0, 0.2],
    ];
    // Expert 3 dominates both rows, more so the second; the first falls back on expert 2.
    const plan = mapped(
      [
        [0.1, -0.9, 0.3, 0.8],
        [0, 0.1, 0.2, 0.9],
      ],
      merge,
    );
    const projected = projectToStock(plan);
    expect(projected.layers).toEqual([{ layer: 1, experts: [2, 3], topK: 1, merge }, plan.layers[1]]);
    expect(parsePlan(projected, toyModel({ experts: 4 }))).toEqual(projected);
  });

  test("spells out the weights of slots that had no merge matrix", () => {
    const projected = projectToStock(
      mapped([
        [0, 0, 1, 0],
        [0, 1, 0, 0],
      ]),
    );
    expect(projected.layers[0]).toEqual({
      layer: 1,
      experts: [2, 1],
      topK: 1,
      merge: [
        [1, 0, 0, 0],
        [0, 1, 0, 0],
      ],
    });
  });

  test("leaves stock plans alone", () => {
    const plan = createPlan(model, [{ layer: 1, experts: [0, 1] }]);
    expect(projectToStock(plan)).toEqual(plan);
  });
});
