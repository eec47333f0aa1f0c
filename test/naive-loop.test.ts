import { cpu } from "@coppice/backend-cpu";
import { reference } from "@coppice/backend-reference";
import { createPlan, type LayerPlan, moeLayers, type Plan, Rng, type Runner, type Tap } from "@coppice/core";
import { createEvaluator, type EncodedSequence, type EncodedTask } from "@coppice/evaluate";
import { randomModel } from "@coppice/plugin-kit";
import { describe, expect, it } from "vitest";

const loaded = randomModel({ layers: 3, experts: 6, topK: 2, vocab: 24, hidden: 8, width: 6 });
const { model } = loaded;
const [end, otherEnd] = [0, 1];

/** Samples that share beginnings, with answers of one to three tokens. */
function randomTask(rng: Rng): EncodedTask {
  const token = () => 2 + rng.integer(model.vocabSize - 2);
  const stems = Array.from({ length: 3 }, () => Array.from({ length: 5 }, token));
  const samples = Array.from({ length: 36 }, (_, line) => {
    const prompt = [...rng.pick(stems).slice(0, 1 + rng.integer(5)), ...Array.from({ length: 3 }, token)];
    const answer = Array.from({ length: 1 + rng.integer(3) }, token);
    const sequence: EncodedSequence = {
      ids: Int32Array.from([...prompt, ...answer]),
      positions: Int32Array.from({ length: answer.length + 1 }, (_, i) => prompt.length - 1 + i),
      targets: Int32Array.from([...answer, end]),
    };
    return { line: line + 1, sequences: [sequence], promptTokens: prompt.length, gold: "" };
  });
  const ending = new Set([end, otherEnd]);
  const common = { name: "random", form: "generation", readsLogits: false } as const;
  return { ...common, samples, ending, endOfText: new Set([end]), endTokens: [end, otherEnd] };
}

/** Plans as a search makes them: each takes one layer of an earlier one anew. Slots are in any order. */
function searchedPlans(count: number, rng: Rng): Plan[] {
  const plans = [createPlan(model)];
  while (plans.length < count) {
    const layers = new Map(rng.pick(plans).layers.map((layer) => [layer.layer, layer]));
    const { index } = rng.pick(moeLayers(model));
    layers.set(index, randomLayer(index, rng));
    plans.push(
      createPlan(
        model,
        [...layers.values()].sort((a, b) => a.layer - b.layer),
      ),
    );
  }
  return plans;
}

function randomLayer(layer: number, rng: Rng): LayerPlan {
  const experts = rng.sample(6, 2 + rng.integer(4));
  if (rng.bernoulli(0.5)) return { layer, experts };
  const merge = experts.map((own) =>
    Array.from({ length: 6 }, (_, j) => (j === own ? 0.8 : 0.2 * rng.uniform())),
  );
  return { layer, experts, merge };
}

/** Watching every layer makes a backend compute every token of it, equal beginnings too. */
const watcher: Tap = { fields: [], onLayer: () => {} };

/** The likelihood of every answer and whether it is the most likely one: all samples, all layers, nothing kept. */
async function naiveScores(runner: Runner, { samples, ending }: EncodedTask, plan: Plan) {
  const sequences = samples.map((sample) => sample.sequences[0] as EncodedSequence);
  const { logits, tokenLayers } = await runner.run({
    sequences: sequences.map(({ ids }) => ids),
    positions: sequences.map(({ positions }) => positions),
    plan,
    tap: watcher,
  });
  let row = 0;
  const results = sequences.map(({ targets }) => {
    let likelihood = 1;
    let right = true;
    for (const [i, target] of targets.entries()) {
      const values = [...(logits as Float32Array).subarray(row * model.vocabSize, ++row * model.vocabSize)];
      const wanted = i === targets.length - 1 ? ending : new Set([target]);
      right &&= wanted.has(values.indexOf(Math.max(...values)));
      const exponentials = values.map(Math.exp);
      const sum = (some: readonly number[]) => some.reduce((total, value) => total + value, 0);
      likelihood *= sum(exponentials.filter((_, token) => wanted.has(token))) / sum(exponentials);
    }
    return { likelihood, right };
  });
  return {
    scores: Float64Array.from(results, ({ likelihood }) => likelihood),
    correct: Uint8Array.from(results, ({ right }) => Number(right)),
    tokenLayers,
  };
}

describe.each([
  ["reference", reference],
  ["cpu", cpu],
] as const)("on the %s backend", (_, backend) => {
  const rng = Rng.fromSeed(11);
  const task = randomTask(rng);
  const plans = searchedPlans(200, rng);

  it("200 plans of a search get the scores of a naive loop to the last sample, for less work", async () => {
    await using runner = await (await backend.create({}, undefined)).load(loaded);
    const evaluator = createEvaluator({ runner, task });
    const seen = new Set<string>();
    let work = 0;
    for (const plan of plans) {
      const expected = await naiveScores(runner, task, plan);
      work += expected.tokenLayers;
      const { scores, correct } = await evaluator.evaluate(plan);
      expect(correct).toEqual(expected.correct);
      // Of the likelihoods only the last bits may differ: those of log-probabilities in float32.
      expectClose(scores, expected.scores);
      seen.add(scores.join());
    }
    expect(seen.size).toBeGreaterThan(150);
    expect(work).toBe(200 * naivePass(task));
    const { tokenLayers, avoidedTokenLayers } = evaluator.work();
    expect(tokenLayers + avoidedTokenLayers).toBe(work);
    expect(tokenLayers).toBeLessThan(0.7 * work);
  });
});

/** Token-layers of one plan. */
function naivePass({ samples }: EncodedTask): number {
  const tokens = samples.flatMap(({ sequences }) => sequences.map(({ ids }) => ids.length));
  return model.layers.length * tokens.reduce((sum, length) => sum + length, 0);
}

function expectClose(found: Float64Array, expected: Float64Array): void {
  const differences = found.map((value, i) => Math.abs(value / (expected[i] as number) - 1));
  expect(Math.max(...differences)).toBeLessThan(1e-5);
}
