import { cpu } from "@coppice/backend-cpu";
import { createPlan, type DecoderLayer, type RunRequest } from "@coppice/core";
import { randomModel } from "@coppice/plugin-kit";
import { afterEach, describe, expect, test, vi } from "vitest";
import { maxDifference } from "./max-difference.js";
import { open, positions, sequences } from "./open-runner.js";

describe("shared beginnings", () => {
  test("given hidden states that differ are not taken for equal", async () => {
    const model = randomModel({ layers: 2 });
    const { runner } = await open(model);
    const twins = [Int32Array.of(4, 5, 6), Int32Array.of(4, 5, 6)];
    const { hiddenSize } = model.model;
    const first = await runner.run({ sequences: twins, boundaries: [1] });
    const hidden = (first.boundaries.get(1) as Float32Array).slice();
    hidden[3 * hiddenSize] = 2;
    const both = await runner.run({ sequences: twins, from: 1, hidden, boundaries: [2] });
    const alone = await runner.run({
      sequences: [twins[1] as Int32Array],
      from: 1,
      hidden: hidden.slice(3 * hiddenSize),
      boundaries: [2],
    });
    const result = both.boundaries.get(2) as Float32Array;
    expect(maxDifference(result.subarray(3 * hiddenSize), alone.boundaries.get(2))).toBeLessThan(1e-6);
    expect(
      maxDifference(result.subarray(0, 3 * hiddenSize), result.subarray(3 * hiddenSize)),
    ).toBeGreaterThan(0.01);
    await runner.dispose();
  });
});

describe("work", () => {
  test("counts rows that went through layers: beginnings once, and of the last layer what is wanted", async () => {
    const { runner } = await open(randomModel({ layers: 3 }));
    // Tokens with different beginnings: 4, 5, 6 and 7 of the first, 9 of the second, 8 and 5 of the third.
    const alike = [Int32Array.of(4, 5, 6, 7), Int32Array.of(4, 5, 9), Int32Array.of(8, 5)];
    const work = async (request: Omit<RunRequest, "sequences">) =>
      (await runner.run({ sequences: alike, ...request })).tokenLayers;
    const all = alike.map((ids) => ids.map((_, i) => i));
    expect(await work({ positions: all })).toBe(7 * 3);
    expect(await work({ boundaries: [3] })).toBe(7 * 3);
    expect(await work({ boundaries: [1] })).toBe(7);
    expect(await work({})).toBe(0);
    // Logits of the shared 5 are wanted twice, of the 7 once and of the last 5.
    const some = [Int32Array.of(1, 3), Int32Array.of(1), Int32Array.of(1)];
    expect(await work({ positions: some })).toBe(7 * 2 + 3);
    expect(await work({ positions: some, boundaries: [3] })).toBe(7 * 3);
    const tap = { fields: [], onLayer: () => {} };
    expect(await work({ positions: some, tap })).toBe(9 * 3);
    // With a cache nothing is shared, and its last layer keeps keys and values of every token.
    const cache = runner.createCache(3);
    expect(await work({ positions: some, cache })).toBe(9 * 2 + 4);
    cache.dispose();
    await runner.dispose();
  });
});

describe("refusals", () => {
  test("of plans that are broken, of caches for no sequence and of a cache that was disposed", async () => {
    const model = randomModel({ layers: 2 });
    const { runner } = await open(model);
    const plan = { ...createPlan(model.model), layers: [{ layer: 0, experts: [0] }] };
    await expect(runner.run({ sequences, plan })).rejects.toMatchObject({ code: "COPPICE_PLAN_KEEP" });
    for (const count of [0, -1, 1.5]) expect(() => runner.createCache(count)).toThrow("give 1 or more");
    const cache = runner.createCache(sequences.length);
    cache.dispose();
    await expect(runner.run({ sequences, cache })).rejects.toMatchObject({
      code: "COPPICE_BACKEND_DISPOSED",
      message: "the cache was disposed before this run",
    });
    await runner.dispose();
  });
});

describe("sessions", () => {
  test("do not grow in number with runs, plans and caches, and are released in the end", async () => {
    const model = randomModel({ layers: 2, experts: 40, topK: 3 });
    const { runner, sessions } = await open(model);
    const visit = async (seed: number) => {
      const kept = Array.from({ length: 3 + (seed % 30) }, (_, i) => (i * 3 + seed) % 40);
      const plan = createPlan(model.model, [{ layer: 1, experts: [...new Set(kept)] }]);
      await runner.run({ sequences, positions, plan });
      await runner.run({ sequences: sequences.slice(seed % 5), plan, boundaries: [2] });
      const cache = runner.createCache(1);
      await runner.run({ sequences: sequences.slice(0, 1), positions: positions.slice(0, 1), cache });
      await runner.run({ sequences: [Int32Array.of(1)], positions: [Int32Array.of(0)], cache });
      cache.dispose();
    };
    for (let seed = 0; seed < 30; seed++) await visit(seed);
    const count = sessions.count;
    for (let seed = 0; seed < 60; seed++) await visit(seed);
    expect(sessions.count).toBe(count);
    // Attention: whole, last rows, and both with a cache; head; experts: 1 to 8 used slots, then 16, 24, 32 and 40.
    expect(count).toBeLessThanOrEqual(4 + 1 + 12);
    await runner.dispose();
    expect(sessions.count).toBe(0);
    await expect(sessions.run("any", () => expect.fail("built a graph"), {})).rejects.toMatchObject({
      code: "COPPICE_BACKEND_DISPOSED",
    });
  });

  test("a failure of ONNX Runtime has a code and its words", async () => {
    const model = randomModel({});
    const broken = { ...model.model, hiddenSize: model.model.hiddenSize / 2 };
    const { runner } = await open({ ...model, model: broken });
    await expect(runner.run({ sequences, positions })).rejects.toMatchObject({
      code: "COPPICE_BACKEND_FAILED",
      message: expect.stringContaining("ONNX Runtime failed in attention"),
    });
    await runner.dispose();
  });
});

describe("the native library", () => {
  afterEach(() => {
    vi.doUnmock("onnxruntime-node");
    vi.resetModules();
  });

  test("is named with a way to install it when it does not load", async () => {
    vi.doMock("onnxruntime-node", () => {
      throw new Error("libonnxruntime.so.1: cannot open shared object file");
    });
    const { loadRuntime: load } = await import("../src/sessions.js");
    await expect(load()).rejects.toMatchObject({
      code: "COPPICE_BACKEND_UNAVAILABLE",
      hint: expect.stringContaining("ONNXRUNTIME_NODE_INSTALL=skip"),
    });
  });
});

describe("a model that is not run", () => {
  const { model, weights } = randomModel({ layers: 1 });
  const [layer] = model.layers as [DecoderLayer];
  const load = async (changed: object) => {
    const backend = await cpu.create({}, undefined);
    return backend.load({ model: { ...model, ...changed }, weights });
  };

  test("because its family is edited only, is refused with that reason", async () => {
    await expect(load({ editOnly: "its token mixers are Mamba" })).rejects.toMatchObject({
      code: "COPPICE_BACKEND_UNSUPPORTED",
      message: expect.stringContaining("its token mixers are Mamba"),
    });
  });

  test("because of a kind that it does not know, is refused with its name", async () => {
    const router = { order: "sinkhorn" };
    const changed = { ...layer, feedForward: { ...layer.feedForward, router } };
    await expect(load({ layers: [changed] })).rejects.toMatchObject({
      code: "COPPICE_BACKEND_UNSUPPORTED",
      message: expect.stringContaining('layer 0 has router order "sinkhorn"; the cpu backend runs "'),
    });
  });
});

describe("options", () => {
  test.each([{ threads: 0 }, { threads: 1.5 }, { mergeCacheBytes: -1 }, { thread: 2 }])(
    "%j is refused",
    async (options) => {
      await expect(cpu.create(options, undefined)).rejects.toMatchObject({ code: "COPPICE_PLUGIN_OPTIONS" });
    },
  );
});
