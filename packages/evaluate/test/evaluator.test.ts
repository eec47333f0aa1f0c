import { createPlan, type LayerPlan, noWork, type Plan, Rng, type Runner, raceParts } from "@coppice/core";
import {
  createEvaluator,
  type EncodedSequence,
  encodeTask,
  microBatches,
  type Objective,
  objectives,
  parseTask,
  partBatches,
  shardBatches,
} from "@coppice/evaluate";
import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { PrefixCache, prefixKeys } from "../src/prefix-cache.js";
import { byteTokenizer } from "./byte-tokenizer.js";
import { fakeModel, hiddenRunner, scriptedRunner } from "./fake-runners.js";

const tokenizer = byteTokenizer();
const model = fakeModel();
const lines = Array.from({ length: 40 }, (_, i) =>
  JSON.stringify({ prompt: "x".repeat(1 + ((i * 7) % 30)) + i, answer: ` ${i % 7}` }),
);
const task = encodeTask(parseTask(lines.join("\n"), "t.jsonl"), { tokenizer, model });

/** Plans over layers 1 to 3 of the toy model, many with equal prefixes. */
function plans(count: number, seed = 1): Plan[] {
  const rng = Rng.fromSeed(seed);
  const subsets = [
    [0, 1],
    [0, 1, 2],
    [3, 5],
    [5, 3],
  ];
  return Array.from({ length: count }, () => {
    const layers: LayerPlan[] = [1, 2, 3]
      .filter(() => rng.bernoulli(0.8))
      .map((layer) => ({ layer, experts: rng.pick(subsets) }));
    return createPlan(model, layers);
  });
}

describe("microBatches", () => {
  it("holds every sample once, in batches of about equal size", () => {
    fc.assert(
      fc.property(fc.array(fc.integer({ min: 1, max: 60 }), { minLength: 1, maxLength: 300 }), (lengths) => {
        const samples = lengths.map((length, line) => ({
          line,
          promptTokens: 0,
          sequences: [
            { ids: new Int32Array(length), positions: new Int32Array(0), targets: new Int32Array(0) },
          ],
        }));
        const batches = microBatches({ ...task, samples });
        expect(batches.flatMap((batch) => batch.samples).sort((a, b) => a - b)).toEqual(
          lengths.map((_, i) => i),
        );
        const total = lengths.reduce((sum, length) => sum + length, 0);
        const least = Math.min(4, Math.max(1, Math.floor(total / 256)));
        expect(batches).toHaveLength(Math.max(least, Math.ceil(total / 1024)));
        for (const batch of batches) {
          expect(batch.tokens).toBeGreaterThan(0);
          expect(batch.tokens).toBeLessThanOrEqual(total / batches.length + 60);
        }
        for (const workers of [1, 2, 3, 5]) {
          const shards = shardBatches(batches, workers);
          expect(shards).toHaveLength(workers);
          expect(shards.flat().sort(bySample)).toEqual([...batches].sort(bySample));
        }
      }),
      { numRuns: 100 },
    );
  });
});

const bySample = (a: { samples: readonly number[] }, b: { samples: readonly number[] }) =>
  (a.samples[0] as number) - (b.samples[0] as number);

describe("createEvaluator", () => {
  it("gives the same bits with and without reuse, for any budget, and counts the work exactly", async () => {
    const tokens = microBatches(task).reduce((sum, batch) => sum + batch.tokens, 0);
    const bytes = tokens * model.hiddenSize * 4;
    const layers = model.layers.length;
    const plain = createEvaluator({ runner: hiddenRunner(model), task, prefixCacheBytes: 0 });
    const expected = [];
    for (const plan of plans(20)) expected.push(await plain.evaluate(plan));
    // Three layers have experts, of which every token takes two.
    const experts = 20 * tokens * 3 * 2;
    expect(plain.work()).toEqual({ ...noWork, tokenLayers: 20 * tokens * layers, expertTokens: experts });
    let avoided = 0;
    for (const budget of [1, 3, 1000]) {
      const runner = hiddenRunner(model);
      const evaluator = createEvaluator({ runner, task, prefixCacheBytes: budget * bytes });
      for (const [i, plan] of plans(20).entries())
        expect(await evaluator.evaluate(plan)).toEqual(expected[i]);
      const work = evaluator.work();
      expect(work.tokenLayers + work.avoidedTokenLayers).toBe(20 * tokens * layers);
      expect(work.expertTokens + work.avoidedExpertTokens).toBe(experts);
      expect(work.avoidedTokenLayers).toBeGreaterThanOrEqual(avoided);
      avoided = work.avoidedTokenLayers;
    }
    expect(avoided).toBeGreaterThan(10 * tokens);
  });

  it("counts what the backend left out as avoided, and the whole model's runs as work", async () => {
    const inner = hiddenRunner(model);
    const lazy: Runner = {
      ...inner,
      async run(request) {
        const result = await inner.run(request);
        return { ...result, tokenLayers: result.tokenLayers - 3, expertTokens: 5 };
      },
    };
    const tokens = microBatches(task).reduce((sum, batch) => sum + batch.tokens, 0);
    for (const [objective, passes] of [
      ["likelihood", 2],
      ["imitation", 3],
    ] as const) {
      inner.requests.length = 0;
      const evaluator = createEvaluator({ runner: lazy, task, objective, prefixCacheBytes: 0 });
      for (const plan of plans(2)) await evaluator.evaluate(plan);
      expect(evaluator.work()).toEqual({
        tokenLayers: passes * tokens * model.layers.length - 3 * inner.requests.length,
        avoidedTokenLayers: 3 * inner.requests.length,
        expertTokens: 5 * inner.requests.length,
        avoidedExpertTokens: passes * tokens * 3 * 2 - 5 * inner.requests.length,
      });
    }
  });

  it("runs plans that differ only in slot order as one", async () => {
    const evaluator = createEvaluator({ runner: hiddenRunner(model), task, prefixCacheBytes: 0 });
    const a = await evaluator.evaluate(createPlan(model, [{ layer: 1, experts: [4, 2, 0] }]));
    const b = await evaluator.evaluate(createPlan(model, [{ layer: 1, experts: [0, 2, 4] }]));
    expect(a).toEqual(b);
  });

  it("scores shards as it scores the whole", async () => {
    const [plan] = plans(1) as [Plan];
    const whole = await createEvaluator({ runner: hiddenRunner(model), task }).evaluate(plan);
    for (let shard = 0; shard < 3; shard++) {
      const parts = partBatches(task).map((batches) => shardBatches(batches, 3)[shard] ?? []);
      const evaluator = createEvaluator({ runner: hiddenRunner(model), task, parts });
      const part = await evaluator.evaluate(plan);
      expect([...part.scores]).toEqual(Array.from(evaluator.samples, (sample) => whole.scores[sample]));
      expect(part.correct).toEqual(
        Uint8Array.from(evaluator.samples, (sample) => whole.correct?.[sample] ?? 9),
      );
    }
  });

  it("scores parts as it scores the whole, each sample in one of them", async () => {
    const [plan] = plans(1) as [Plan];
    const evaluator = createEvaluator({ runner: hiddenRunner(model), task });
    const whole = await evaluator.evaluate(plan);
    expect(evaluator.parts).toHaveLength(raceParts(task.samples.length));
    for (const [part, samples] of evaluator.parts.entries()) {
      expect(Array.from(samples, (sample) => sample % evaluator.parts.length)).toEqual(
        Array.from(samples, () => part),
      );
      const { scores } = await evaluator.evaluate(plan, { part });
      expect([...scores]).toEqual(Array.from(samples, (sample) => whole.scores[sample]));
    }
    expect(evaluator.parts.flatMap((samples) => [...samples]).sort((a, b) => a - b)).toEqual([
      ...evaluator.samples,
    ]);
    expect([...evaluator.samples]).toEqual([...task.samples.keys()]);
  });

  it("stops between batches when aborted", async () => {
    const controller = new AbortController();
    const inner = hiddenRunner(model);
    const runner: Runner = {
      ...inner,
      run: async (request) => {
        controller.abort();
        return inner.run({
          sequences: request.sequences,
          positions: request.positions ?? [],
          targets: request.targets ?? [],
        });
      },
    };
    const evaluator = createEvaluator({ runner, task, prefixCacheBytes: 0 });
    await expect(evaluator.evaluate(createPlan(model), { signal: controller.signal })).rejects.toMatchObject({
      code: "COPPICE_ABORTED",
    });
    expect(inner.requests).toHaveLength(1);
  });

  it("refuses objectives that do not fit", () => {
    const text = encodeTask(parseTask("some text", "t.txt"), { tokenizer, model });
    const runner = hiddenRunner(model);
    expect(() => createEvaluator({ runner, task: text, objective: "likelihood" })).toThrow(/log-likelihood/);
    expect(() => createEvaluator({ runner, task, objective: "magic" as "likelihood" })).toThrow(/"magic"/);
  });
});

describe("objectives", () => {
  const generation = encodeTask(parseTask('{"prompt":"p","answer":"ab"}', "g"), { tokenizer, model });
  const [a, b, newline] = [2 + 97, 2 + 98, 2 + 10] as const;
  /** Probability 0.5 on each of two tokens after "p", then sure of b, then of the end. */
  const runner = (end: number, second: number) =>
    scriptedRunner(model, (ids) => {
      const logits = new Float32Array(model.vocabSize).fill(-100);
      if (ids.length === 1) for (const token of [a, second]) logits[token] = 0;
      else logits[ids.length === 2 ? b : end] = 0;
      return logits;
    });
  const score = async (objective: (typeof objectives)[number], end = 0, second = 2 + 122) => {
    const evaluator = createEvaluator({
      runner: runner(end, second),
      task: generation,
      objective,
      prefixCacheBytes: 0,
    });
    const { scores, correct } = await evaluator.evaluate(createPlan(model));
    return [scores[0], correct?.[0]];
  };

  it("score answers", async () => {
    // The tie goes to the lower id: "a" before "z", but after "A".
    expect(await score("exact-match")).toEqual([1, 1]);
    expect(await score("exact-match", 0, 2 + 65)).toEqual([0, 0]);
    expect(await score("likelihood")).toEqual([expect.closeTo(0.5, 5), 1]);
    expect(await score("likelihood", 0, 2 + 65)).toEqual([expect.closeTo(0.5, 5), 0]);
    expect(await score("log-likelihood")).toEqual([expect.closeTo(Math.log(0.5) / 3, 5), 1]);
  });

  it("take any likely end for the end, and bound what is hopeless", async () => {
    expect(generation.endTokens).toEqual([0, newline]);
    expect(await score("exact-match", newline)).toEqual([1, 1]);
    expect(await score("likelihood", newline)).toEqual([expect.closeTo(0.5, 5), 1]);
    // Half of the end's probability on end-of-text, half on the line break: together it is sure.
    const shared = scriptedRunner(model, (ids) => {
      const logits = new Float32Array(model.vocabSize).fill(-100);
      for (const token of ids.length === 1 ? [a] : ids.length === 2 ? [b] : [0, newline]) logits[token] = 0;
      return logits;
    });
    const evaluator = createEvaluator({
      runner: shared,
      task: generation,
      objective: "log-likelihood",
      prefixCacheBytes: 0,
    });
    expect((await evaluator.evaluate(createPlan(model))).scores[0]).toBeCloseTo(0, 5);
    // A carriage return ends an answer too, but a rare end has no row of its own.
    expect(await score("log-likelihood", 2 + 13)).toEqual([-20, 1]);
  });

  it.each([
    ["one token each", '{"prompt":"p","choices":["a","b","c"],"answer":1}', 1],
    ["several tokens", '{"prompt":"p","choices":["az","b","czz"],"answer":1}', 3],
  ])("score choices: %s", async (_, line, sequences) => {
    const choices = encodeTask(parseTask(line, "c"), { tokenizer, model });
    expect(choices.samples[0]?.sequences).toHaveLength(sequences);
    // log p: a = log 0.2, b = log 0.5, c = log 0.3; z after them is sure.
    const logits = scriptedRunner(model, (ids) => {
      const row = new Float32Array(model.vocabSize).fill(-100);
      if (ids.length > 1) row[2 + 122] = 0;
      else
        [0.2, 0.5, 0.3].forEach((p, i) => {
          row[a + i] = Math.log(p);
        });
      return row;
    });
    const values: Record<string, number> = {};
    for (const objective of objectives) {
      const { scores, correct } = await createEvaluator({
        runner: logits,
        task: choices,
        objective,
        prefixCacheBytes: 0,
      }).evaluate(createPlan(model));
      values[objective] = scores[0] as number;
      expect(correct).toEqual(Uint8Array.of(1));
    }
    expect(values).toEqual({
      "exact-match": 1,
      likelihood: expect.closeTo(0.5, 5),
      "log-likelihood": expect.closeTo(Math.log(0.5), 5),
      // The whole model imitates itself.
      imitation: expect.closeTo(1, 5),
      blend: expect.closeTo(0.75, 5),
    });
  });

  /** KL from the logits of the whole model to those of a plan, over all tokens, at every position that expects one. */
  function slowDivergence(
    inner: Runner,
    sequences: readonly EncodedSequence[],
    plan: Plan,
  ): Promise<number>[] {
    return sequences.map(async ({ ids, positions }) => {
      const rows = async (given?: Plan) => {
        const { logits } = await inner.run({
          sequences: [ids],
          positions: [positions],
          ...(given && { plan: given }),
        });
        return logits as Float32Array;
      };
      const [p, q] = [await rows(), await rows(plan)];
      let sum = 0;
      for (let row = 0; row < positions.length; row++) {
        const at = (logits: Float32Array) => {
          const values = [...logits.subarray(row * model.vocabSize, (row + 1) * model.vocabSize)];
          const total = Math.log(values.reduce((all, value) => all + Math.exp(value), 0));
          return values.map((value) => value - total);
        };
        const [logP, logQ] = [at(p), at(q)];
        sum += logP.reduce((all, log, i) => all + Math.exp(log) * (log - (logQ[i] as number)), 0);
      }
      return sum;
    });
  }

  it("compare with the whole model at every position of an answer", async () => {
    // Only 22 tokens ever come: all of them are told apart.
    const few = () =>
      scriptedRunner(model, (ids, plan) => {
        const logits = new Float32Array(model.vocabSize).fill(-100);
        for (const token of [0, newline, ...Array.from({ length: 20 }, (_, i) => a + i)]) {
          logits[token] = 2 * Math.cos(token * ids.length + (plan?.layers.length ? 1 : 0));
        }
        return logits;
      });
    const answers = encodeTask(
      parseTask(['{"prompt":"p","answer":"ab"}', '{"prompt":"qr","answer":"c"}'].join("\n"), "t.jsonl"),
      { tokenizer, model },
    );
    const plan = createPlan(model, [{ layer: 1, experts: [1, 4] }]);
    const evaluate = (objective: Objective, given: Plan) =>
      createEvaluator({ runner: few(), task: answers, objective, prefixCacheBytes: 0 }).evaluate(given);
    const sequences = answers.samples.flatMap((sample) => sample.sequences);
    const expected = await Promise.all(slowDivergence(few(), sequences, plan));
    const { scores: imitation } = await evaluate("imitation", plan);
    const { scores: likelihood, correct } = await evaluate("likelihood", plan);
    const { scores: blend, correct: taught } = await evaluate("blend", plan);
    expected.forEach((divergence, i) => {
      expect(divergence).toBeGreaterThan(0.01);
      expect(imitation[i]).toBeCloseTo(Math.exp(-divergence), 5);
      expect(blend[i]).toBeCloseTo((Math.exp(-divergence) + (likelihood[i] as number)) / 2, 5);
    });
    const { scores: own } = await evaluate("imitation", createPlan(model));
    for (const score of own) expect(score).toBeCloseTo(1, 6);
    expect(taught).toEqual(correct);
  });

  it("count tokens beyond the teacher's most likely as one, which makes a divergence smaller", async () => {
    const plan = createPlan(model, [{ layer: 1, experts: [1, 4] }]);
    const [divergence = 0] = await Promise.all(
      slowDivergence(hiddenRunner(model), generation.samples[0]?.sequences ?? [], plan),
    );
    const { scores } = await createEvaluator({
      runner: hiddenRunner(model),
      task: generation,
      objective: "imitation",
    }).evaluate(plan);
    expect(scores[0]).toBeLessThan(1);
    expect(scores[0]).toBeGreaterThanOrEqual(Math.exp(-divergence));
  });

  it("compare text with the whole model per token", async () => {
    const text = encodeTask(parseTask("some text", "t.txt"), { tokenizer, model });
    const evaluator = createEvaluator({ runner: hiddenRunner(model), task: text, objective: "imitation" });
    expect((await evaluator.evaluate(createPlan(model))).scores[0]).toBeCloseTo(0, 6);
    const changed = await evaluator.evaluate(createPlan(model, [{ layer: 1, experts: [1, 4] }]));
    expect(changed.scores[0]).toBeLessThan(-1e-5);
    expect(() => createEvaluator({ runner: hiddenRunner(model), task: text, objective: "blend" })).toThrow(
      /answers/,
    );
  });

  it("score text", async () => {
    const text = encodeTask(parseTask("pab", "t.txt"), { tokenizer, model });
    const { scores, correct } = await createEvaluator({
      runner: runner(0, 2 + 122),
      task: text,
      prefixCacheBytes: 0,
    }).evaluate(createPlan(model));
    expect(correct).toBeUndefined();
    expect(scores[0]).toBeCloseTo(Math.log(0.5) / 2, 5);
  });
});

describe("PrefixCache", () => {
  it("keys prefixes by what they compute", () => {
    const of = (...layers: LayerPlan[]) => prefixKeys(createPlan(model, layers), model);
    const a = of({ layer: 1, experts: [0, 1] }, { layer: 3, experts: [0, 1] });
    const b = of({ layer: 1, experts: [1, 0] }, { layer: 2, experts: [0, 1, 2, 3, 4, 5] });
    const c = of({ layer: 1, experts: [0, 2] });
    expect(a.slice(0, 4)).toEqual(b.slice(0, 4));
    expect(a[4]).not.toBe(b[4]);
    expect(a.slice(0, 2)).toEqual(c.slice(0, 2));
    expect(a[2]).not.toBe(c[2]);
    expect(new Set(a).size).toBe(a.length);
  });

  it("lets a new prefix in when full only at its second coming, and drops the least recently used", () => {
    const cache = new PrefixCache(20, 10);
    const values = [new Float32Array(1)];
    const x = ["x0", "x1", "x2", "end"];
    const y = ["y0", "y1", "end"];
    expect(cache.worthStoring(x, 0)).toEqual([1, 2]);
    cache.store("x1", values);
    cache.store("x2", values);
    expect(cache.worthStoring(y, 0)).toEqual([]);
    expect(cache.find(y)).toBeUndefined();
    expect(cache.find(["x0", "x1", "end"])?.layer).toBe(1);
    expect(cache.worthStoring(y, 0)).toEqual([1]);
    cache.store("y1", values);
    expect(cache.size).toBe(2);
    expect(cache.find(x)?.layer).toBe(1);
    expect(new PrefixCache(9, 10).worthStoring(x, 0)).toEqual([]);
  });
});
