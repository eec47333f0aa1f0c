import { partialModel } from "@coppice/checkpoint";
import { createPlan, type MoeModel, moeLayers, type Plan, selectExperts } from "@coppice/core";
import { generate, type Tokenizer } from "@coppice/evaluate";
import { type MemoryModel, randomModel, sampleAttention, slowForward } from "@coppice/plugin-kit";
import { DriftMonitor, openWideningRunner, readRouters, type Widening } from "@coppice/profiles";
import { describe, expect, test } from "vitest";
import { backend, expectCode, models, sequences } from "./models.js";

function narrowPlan(model: MoeModel, keep?: number): Plan {
  return createPlan(
    model,
    moeLayers(model).map(({ index, feedForward }) => {
      const { topK, groups } = feedForward.router;
      const count = keep ?? (groups ? feedForward.experts.length / groups.count : 1) * (groups?.keep ?? topK);
      const experts = selectExperts(feedForward, new Float64Array(feedForward.experts.length), count, index);
      return { layer: index, experts };
    }),
  );
}

describe.each(Object.keys(models))("drift in a model with %s", (name) => {
  test("is the mean softmax probability of the experts that are not loaded", async () => {
    const source = await (models[name] as (typeof models)[string])();
    const { model, weights } = source;
    const plan = narrowPlan(model);
    const { experts: kept, ...part } = partialModel(model, weights, plan);
    await using runner = await (await backend()).load(part);
    const monitor = new DriftMonitor({
      routers: await readRouters(model, weights),
      kept,
      threshold: 0,
      window: 6,
    });
    const batch = sequences(model.vocabSize, [4, 5]);
    await runner.run({
      sequences: batch,
      tap: { fields: DriftMonitor.fields, onLayer: (layer) => monitor.observe(layer) },
    });
    const drift = monitor.settle();

    const dropped = batch.flatMap((ids) => {
      const { layers } = slowForward(source, [...ids], plan);
      return Array.from(ids, (_, t) => {
        const each = layers.map(({ layer, input }) => {
          const spec = moeLayers(model).find(({ index }) => index === layer)?.feedForward;
          const { weight, bias } = spec?.router ?? {};
          const rows = source.tensors.get(weight?.name ?? "") ?? new Float32Array(0);
          const offsets = bias && source.tensors.get(bias.name);
          const x = input[t] ?? [];
          const mass = (spec?.experts ?? []).map((_, e) =>
            Math.exp(
              x.reduce((sum, value, i) => sum + value * (rows[e * x.length + i] ?? 0), offsets?.[e] ?? 0),
            ),
          );
          const total = mass.reduce((sum, value) => sum + value, 0);
          const there = (kept.get(layer) ?? []).reduce((sum, expert) => sum + (mass[expert] ?? 0), 0);
          return 1 - there / total;
        });
        return each.reduce((sum, value) => sum + value, 0) / each.length;
      });
    });
    const window = dropped.slice(-6);
    expect(drift.tokens).toBe(6);
    expect(drift.drifted).toBe(true);
    expect(drift.dropped).toBeCloseTo(window.reduce((sum, value) => sum + value, 0) / 6, 5);
  });
});

describe("DriftMonitor", () => {
  test("waits for some tokens, and refuses settings that make no sense", async () => {
    const { model, weights } = randomModel({ experts: 4 });
    const routers = await readRouters(model, weights);
    const kept = new Map(moeLayers(model).map(({ index }) => [index, [0]]));
    await using runner = await (await backend()).load({ model, weights });
    const monitor = new DriftMonitor({ routers, kept, threshold: 0, window: 8, least: 4 });
    const feed = async (tokens: number) => {
      await runner.run({
        sequences: sequences(model.vocabSize, [tokens]),
        tap: { fields: DriftMonitor.fields, onLayer: (layer) => monitor.observe(layer) },
      });
      return monitor.settle();
    };
    expect(await feed(3)).toMatchObject({ tokens: 3, drifted: false });
    expect(await feed(1)).toMatchObject({ tokens: 4, drifted: true });
    expect(await feed(7)).toMatchObject({ tokens: 8 });
    expect(monitor.settle()).toMatchObject({ tokens: 8 });
    await expectCode(() => new DriftMonitor({ routers, kept, threshold: 2 }), "COPPICE_USAGE", "threshold");
    await expectCode(
      () => new DriftMonitor({ routers, kept, threshold: 0, window: 0 }),
      "COPPICE_USAGE",
      "window",
    );
  });
});

/** Token ids are all that these tests speak. */
const noText: Tokenizer = {
  size: 0,
  encode: () => new Int32Array(0),
  decode: () => "",
  endToken: undefined,
  beginToken: undefined,
  lineBreakCandidates: () => [],
  hasChatTemplate: false,
  renderChat: () => "",
};

describe("openWideningRunner", () => {
  const shape = { experts: 6, layers: 3, vocab: 60, seed: 5 };
  const source = randomModel(shape);
  const { model, weights } = source;
  const [prompt = new Int32Array(0)] = sequences(model.vocabSize, [6]);
  const options = { maxTokens: 12, temperature: 0 };

  /** Tokens that the whole model writes under a plan. */
  async function expected(plan: Plan | undefined, of: MemoryModel = source) {
    await using runner = await (await backend()).load(of);
    const { tokens } = await generate(runner, noText, prompt, { ...options, ...(plan && { plan }) });
    return [...tokens];
  }

  test("writes what the whole model writes under the plan, as long as nothing drifts", async () => {
    const plan = narrowPlan(model);
    const widenings: Widening[] = [];
    await using runner = await openWideningRunner({
      ...{ backend: await backend(), model, weights, threshold: 1 },
      plans: [plan, narrowPlan(model, 4)],
      onWiden: (widening) => widenings.push(widening),
    });
    const { tokens } = await generate(runner, noText, prompt, options);
    expect([...tokens]).toEqual(await expected(plan));
    expect(widenings).toEqual([]);
    expect(runner.plan).toEqual(plan);
    expect(runner.drift?.dropped).toBeGreaterThan(0);
  });

  test("loads wider plans to the last when everything drifts, and writes what the whole model writes", async () => {
    const plans = [narrowPlan(model), narrowPlan(model, 4), createPlan(model)];
    const widenings: Widening[] = [];
    await using runner = await openWideningRunner({
      ...{ backend: await backend(), model, weights, threshold: 0, least: 1 },
      plans,
      onWiden: (widening) => widenings.push(widening),
    });
    const { tokens } = await generate(runner, noText, prompt, options);
    expect([...tokens]).toEqual(await expected(undefined));
    expect(widenings.map(({ from, to }) => [from, to])).toEqual([
      [plans[0], plans[1]],
      [plans[1], plans[2]],
    ]);
    expect(runner.drift).toMatchObject({ dropped: 0, drifted: false });
  });

  test("goes on in the middle of a text as if its beginning had been read under the wider plan", async () => {
    const plans = [narrowPlan(model), narrowPlan(model, 4)];
    let written = 0;
    const widened: number[] = [];
    await using runner = await openWideningRunner({
      // As many tokens as the prompt and four more are waited for.
      ...{ backend: await backend(), model, weights, threshold: 0, least: prompt.length + 4 },
      plans,
      onWiden: () => widened.push(written),
    });
    const { tokens } = await generate(runner, noText, prompt, { ...options, onToken: () => written++ });
    expect(widened).toEqual([4]);
    const before = (await expected(plans[0])).slice(0, 4);
    expect([...tokens].slice(0, 4)).toEqual(before);
    await using whole = await (await backend()).load(source);
    const { tokens: after } = await generate(whole, noText, Int32Array.of(...prompt, ...before), {
      ...options,
      maxTokens: 8,
      plan: plans[1] as Plan,
    });
    expect([...tokens].slice(4)).toEqual([...after]);
    expect(runner.plan).toEqual(plans[1]);
  });

  test("keeps batches in one cache and its attention, gives taps what they ask for, and disposes what it loaded", async () => {
    const plans = [narrowPlan(model), narrowPlan(model, 4)];
    const runner = await openWideningRunner({
      ...{ backend: await backend(), model, weights, threshold: 0, least: 22 },
      plans,
    });
    const attention = { plan: sampleAttention(model), lengths: [10, 13] };
    const cache = runner.createCache(2, attention);
    const [a, b] = sequences(model.vocabSize, [9, 12]) as [Int32Array, Int32Array];
    const last = (ids: Int32Array) => Int32Array.of(ids.length - 1);
    const seen = new Set<number>();
    await runner.run({ sequences: [a, b], cache, positions: [last(a), last(b)] });
    expect(cache.lengths).toEqual([9, 12]);
    const step = [Int32Array.of(1), Int32Array.of(2)];
    const { logits } = await runner.run({
      sequences: step,
      cache,
      positions: step.map(last),
      tap: { fields: ["routing"], onLayer: ({ layer, slots }) => slots && seen.add(layer) },
    });
    expect(cache.lengths).toEqual([10, 13]);
    expect(runner.plan).toEqual(plans[1]);
    expect([...seen].sort()).toEqual([0, 1, 2]);
    await using whole = await (await backend()).load(source);
    const joined = [Int32Array.of(...a, 1), Int32Array.of(...b, 2)];
    const direct = await whole.run({
      sequences: joined,
      positions: joined.map(last),
      plan: plans[1] as Plan,
      attention,
    });
    (direct.logits ?? []).forEach((value, i) => {
      expect(logits?.[i]).toBeCloseTo(value, 4);
    });
    cache.dispose();
    await runner.dispose();
    await expectCode(() => runner.run({ sequences: [a] }), "COPPICE_BACKEND_DISPOSED");
  });

  test("refuses requests with a plan, caches of others, and to begin without a plan", async () => {
    const make = async () =>
      openWideningRunner({
        backend: await backend(),
        model,
        weights,
        threshold: 1,
        plans: [narrowPlan(model)],
      });
    await using runner = await make();
    await using other = await make();
    const request = { sequences: [prompt] };
    await expectCode(() => runner.run({ ...request, plan: createPlan(model) }), "COPPICE_USAGE", "plan");
    await expectCode(() => runner.run({ ...request, cache: other.createCache(1) }), "COPPICE_USAGE", "cache");
    const none = { backend: await backend(), model, weights, threshold: 1, plans: [] };
    await expectCode(() => openWideningRunner(none), "COPPICE_USAGE", "no plan");
  });
});
