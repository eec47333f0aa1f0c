import { type Candidate, planKey, Rng, type Scored } from "@coppice/core";
import { separableLandscape, toyModel } from "@coppice/plugin-kit";
import { type EepOptions, eep } from "@coppice/search-eep";
import { describe, expect, test } from "vitest";

const model = toyModel({ layers: 8, experts: 8 });
const { fitness } = separableLandscape(model);

/** Runs the strategy to its end and returns everything it proposed, one list per ask. */
async function run(options: EepOptions, score: (c: Candidate) => Partial<Scored> = () => ({}), seed = 1) {
  const context = { model, rng: Rng.fromSeed(seed), evaluations: 10_000, scores: new Map() };
  const strategy = await eep.create(options, context);
  const asks: (readonly Candidate[])[] = [];
  for (let asked = strategy.ask(8); asked.length > 0; asked = strategy.ask(8)) {
    asks.push(asked);
    strategy.tell(
      asked.map((candidate): Scored => {
        const value = fitness(candidate.plan);
        const key = planKey(candidate.plan, model);
        const scores = Float64Array.of(value);
        return {
          candidate,
          key,
          fitness: value,
          accuracy: value,
          scores,
          cached: false,
          ...score(candidate),
        };
      }),
    );
  }
  return asks;
}

const phases = (asks: readonly (readonly Candidate[])[]) => {
  const all = asks.flat();
  return {
    random: all.filter(({ origin }) => origin === "random").length,
    prune: all.filter(({ phase }) => phase === "prune").length,
    merge: all.filter(({ phase }) => phase === "merge").length,
  };
};

describe("released", () => {
  test("31 initial plans, 101 after pruning, 401 in all, one child at a time", async () => {
    const asks = await run({ keep: 4, preset: "released" });
    expect(phases(asks)).toEqual({ random: 31, prune: 101, merge: 300 });
    const initial = asks.flat().slice(0, 31);
    expect(new Set(initial.map(({ plan }) => planKey(plan, model))).size).toBe(31);
    expect(asks.slice(4).every((asked) => asked.length === 1)).toBe(true);
  });

  test("crosses only while merging, in 30 %", async () => {
    const all = (await run({ keep: 4, preset: "released", mergeEvaluations: 500 })).flat();
    const crossed = all.filter(({ origin }) => origin.startsWith("crossover"));
    expect(crossed.every(({ phase }) => phase === "merge")).toBe(true);
    expect(crossed.length / 500).toBeCloseTo(0.3, 1);
  });

  test("goes by accuracy in points where there is one, not by fitness", async () => {
    const better = await run({ keep: 4, preset: "released" }, ({ plan }) => ({ fitness: -fitness(plan) }));
    const mean = (all: readonly Candidate[]) =>
      all.reduce((sum, { plan }) => sum + fitness(plan), 0) / all.length;
    const pruned = better.flat().filter(({ phase }) => phase === "prune");
    expect(mean(pruned.slice(-20))).toBeGreaterThan(mean(pruned.slice(0, 31)) + 0.02);
  });

  test("breeds only from individuals within 3 points of the best and the first below", async () => {
    // One initial plan is 3.5 points better than all others: it and one other can be parents.
    let told = 0;
    const asks = await run({ keep: 2, preset: "released", groups: 1, mergeEvaluations: 0 }, () => {
      told++;
      return { accuracy: told === 5 ? 0.535 : told <= 31 ? 0.5 - told / 1e4 : 0.1 };
    });
    const sets = asks.flat().map(({ plan }) => plan.layers[0]?.experts ?? []);
    const best = sets[4] as readonly number[];
    const second = sets[0] as readonly number[];
    const differs = (a: readonly number[], b: readonly number[]) => a.filter((e) => !b.includes(e)).length;
    let fromBest = 0;
    for (const child of sets.slice(31)) {
      // A row is re-pointed with probability 0.15, so most children are one of the two parents unchanged.
      if (differs(child, best) === 0) fromBest++;
      else if (differs(child, second) > 0) {
        expect(Math.min(differs(child, best), differs(child, second))).toBeLessThanOrEqual(2);
      }
    }
    expect(fromBest).toBeGreaterThan(15);
    expect(fromBest).toBeLessThan(60);
  });
});

describe("paper", () => {
  test("40 and 160 iterations of several children, four groups of layers, crossover before mutation", async () => {
    const asks = await run({ keep: 4, preset: "paper" });
    expect(phases(asks)).toEqual({ random: 31, prune: 31 + 40 * 2, merge: 160 * 2 });
    for (const { plan } of asks.flat()) {
      for (let group = 0; group < 8; group += 2) {
        expect(plan.layers[group]?.experts).toEqual(plan.layers[group + 1]?.experts);
        expect(plan.layers[group]?.merge).toEqual(plan.layers[group + 1]?.merge);
      }
    }
    const bred = asks.flat().filter(({ origin }) => origin !== "random");
    expect(bred.every(({ origin }) => origin === "crossover+mutation")).toBe(true);
  });
});

describe("router", () => {
  const maps = async (options: EepOptions) =>
    (await run(options)).flat().filter(({ plan }) => plan.layers.some((layer) => layer.routerMap));

  test.each(["default", "paper", "released"] as const)(
    "%s: stock plans have no router map",
    async (preset) => {
      const sizes = { pruneEvaluations: 100, mergeEvaluations: 60 };
      expect(await maps({ keep: 4, preset, ...sizes })).toEqual([]);
    },
  );

  test.each(["default", "paper", "released"] as const)(
    "%s: mapped plans have them while merging",
    async (preset) => {
      const mapped = await maps({
        keep: 4,
        preset,
        pruneEvaluations: 100,
        mergeEvaluations: 60,
        router: "mapped",
      });
      expect(mapped.length).toBeGreaterThan(15);
      expect(mapped.every(({ phase }) => phase === "merge")).toBe(true);
    },
  );
});

test("with every expert kept there is nothing to prune: merging starts from the model as it is", async () => {
  for (const preset of ["default", "paper", "released"] as const) {
    const asks = await run({ keep: 8, topK: 1, preset, mergeEvaluations: 40 });
    expect(asks[0]).toHaveLength(1);
    expect(asks[0]?.[0]).toMatchObject({ phase: "merge", origin: "model" });
    expect(asks[0]?.[0]?.plan.layers.every((layer) => layer.topK === 1 && !layer.merge)).toBe(true);
    expect(phases(asks)).toMatchObject({ prune: 0, merge: 40 });
  }
});
