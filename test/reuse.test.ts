import { cpu } from "@coppice/backend-cpu";
import { createPlan, type LayerPlan, moeLayers, type Plan, Rng, type Runner } from "@coppice/core";
import { createEvaluator, type EncodedTask } from "@coppice/evaluate";
import { randomModel } from "@coppice/plugin-kit";
import { describe, expect, it } from "vitest";

const loaded = randomModel({ layers: 3, experts: 6, topK: 2, vocab: 24, hidden: 16, width: 12 });
const { model } = loaded;

/** Samples that share beginnings. */
function randomTask(rng: Rng): EncodedTask {
  const token = () => 2 + rng.integer(model.vocabSize - 2);
  const stem = Array.from({ length: 5 }, token);
  const samples = Array.from({ length: 34 }, (_, line) => {
    const ids = Int32Array.from([...stem.slice(0, rng.integer(6)), ...Array.from({ length: 4 }, token)]);
    const sequence = {
      ids,
      positions: Int32Array.of(ids.length - 2, ids.length - 1),
      targets: Int32Array.of(ids.at(-1) as number, 0),
    };
    return { line: line + 1, sequences: [sequence], promptTokens: ids.length - 1, gold: "" };
  });
  const common = { name: "random", form: "generation", readsLogits: false } as const;
  return { ...common, samples, ending: new Set([0]), endOfText: new Set([0]), endTokens: [0] };
}

/** Plans as a search makes them: swaps, other sizes, merges and the model itself in some layers of earlier ones. */
function searchedPlans(count: number, rng: Rng): Plan[] {
  const plans = [createPlan(model)];
  while (plans.length < count) {
    const layers = new Map(rng.pick(plans).layers.map((layer) => [layer.layer, layer]));
    const { index } = rng.pick(moeLayers(model));
    layers.set(index, randomLayer(index, layers.get(index), rng));
    plans.push(
      createPlan(
        model,
        [...layers.values()].sort((a, b) => a.layer - b.layer),
      ),
    );
  }
  return plans;
}

function randomLayer(layer: number, known: LayerPlan | undefined, rng: Rng): LayerPlan {
  const kept = known?.experts ?? [0, 1, 2];
  const others = [0, 1, 2, 3, 4, 5].filter((expert) => !kept.includes(expert));
  if (others.length > 0 && rng.bernoulli(0.6)) {
    const out = rng.integer(kept.length);
    return { layer, experts: kept.map((expert, i) => (i === out ? rng.pick(others) : expert)) };
  }
  const experts = rng.sample(6, 2 + rng.integer(4));
  if (rng.bernoulli(0.4)) return { layer, experts, topK: 1 };
  const merge = experts.map((own, i) =>
    Array.from({ length: 6 }, (_, j) => (j === own ? 1 : i === 0 ? 0.2 * rng.uniform() : 0)),
  );
  return { layer, experts, merge };
}

describe("what an evaluator keeps", () => {
  const budgets = [2e4, 2e5, 2e7];
  it.each(budgets)("does not change a bit of any score, with %d bytes, and spares experts", async (bytes) => {
    await using runner = await (await cpu.create({}, undefined)).load(loaded);
    const forgetful: Runner = { ...runner, model, run: runner.run.bind(runner) };
    let spared = 0;
    for (let seed = 0; seed < 4; seed++) {
      const rng = Rng.fromSeed(seed);
      const task = randomTask(rng);
      using nothing = createEvaluator({ runner, task, prefixCacheBytes: 0 });
      using layers = createEvaluator({ runner: forgetful, task, prefixCacheBytes: bytes });
      using all = createEvaluator({ runner, task, prefixCacheBytes: bytes });
      for (const plan of searchedPlans(20, rng)) {
        const part = rng.bernoulli(0.5) ? rng.integer(all.parts.length) : undefined;
        const expected = await nothing.evaluate(plan, { part });
        expect(await layers.evaluate(plan, { part })).toEqual(expected);
        expect(await all.evaluate(plan, { part })).toEqual(expected);
      }
      const [none, some] = [nothing.work(), all.work()];
      expect(some.tokenLayers + some.avoidedTokenLayers).toBe(none.tokenLayers + none.avoidedTokenLayers);
      expect(some.expertTokens + some.avoidedExpertTokens).toBe(none.expertTokens + none.avoidedExpertTokens);
      spared += layers.work().expertTokens - some.expertTokens;
    }
    if (bytes === Math.max(...budgets)) expect(spared).toBeGreaterThan(1000);
  });
});
