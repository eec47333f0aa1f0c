import { cpu } from "@coppice/backend-cpu";
import { createPlan, type DecoderLayer, type RunRequest } from "@coppice/core";
import { type MemoryModel, type RandomModelShape, randomModel } from "@coppice/plugin-kit";
import { afterEach, describe, expect, test, vi } from "vitest";
import { CpuRunner } from "../src/runner.js";
import { loadRuntime, Sessions } from "../src/sessions.js";
import type { UnitLimits } from "../src/units.js";
import { readWeights } from "../src/weights.js";
import { maxDifference } from "./max-difference.js";

const settings = { threads: 1, mergeCacheBytes: 2 ** 20 };
const tiny: UnitLimits = { tokens: 6, scores: 24, everyBytes: 1 };

async function open({ model, weights }: MemoryModel, limits?: UnitLimits) {
  const runtime = await loadRuntime();
  const sessions = new Sessions(runtime, 1);
  const range = { from: 0, to: model.layers.length };
  const read = await readWeights(runtime, model, weights, range, undefined);
  return { sessions, runner: new CpuRunner(runtime, model, range, read, settings, sessions, limits) };
}

const sequences = [[5, 3, 8, 1, 2, 9, 4, 4, 7, 1, 3], [5, 3, 8, 2], [1], [5, 3, 8, 1, 2, 6], [9, 9]].map(
  (ids) => Int32Array.from(ids),
);
const positions = sequences.map((ids) => Int32Array.from(ids.keys()));

const latent = { rank: 8, nopeDim: 6, rotaryDim: 4, valueDim: 5 };
const chunked = { chunk: 4, plainLayers: [1], temperature: { floor: 2, scale: 0.3 } };
const models: Record<string, RandomModelShape> = {
  plain: {},
  latent: { latent, interleaved: true, slidingWindow: 5 },
  chunked,
  "following the length": { scaling: { kind: "dynamic", factor: 2, originalContext: 5 } },
};

describe("limits of a unit", () => {
  test.each(Object.entries(models))("%s: small units give the same as one", async (_, shape) => {
    const model = randomModel({ ...shape, layers: 3 });
    const whole = await open(model);
    const split = await open(model, tiny);
    const request: RunRequest = { sequences, positions, boundaries: [1, 3] };
    const [a, b] = [await whole.runner.run(request), await split.runner.run(request)];
    expect(maxDifference(a.logits, b.logits)).toBeLessThan(1e-5);
    for (const layer of [1, 3]) {
      expect(maxDifference(a.boundaries.get(layer), b.boundaries.get(layer))).toBeLessThan(1e-5);
    }
    const inputs = async (runner: CpuRunner, batch: readonly Int32Array[]) => {
      const seen: number[][] = [[], [], []];
      await runner.run({
        sequences: batch,
        tap: { fields: ["input"], onLayer: ({ layer, input }) => seen[layer]?.push(...(input ?? [])) },
      });
      return seen;
    };
    // A tap keeps the order of the request, so the tokens of all units stand in packed order.
    const together = await inputs(split.runner, sequences);
    const alone = await Promise.all(sequences.map((ids) => inputs(whole.runner, [ids])));
    for (const [layer, values] of together.entries()) {
      const expected = alone.flatMap((seen) => seen[layer] as number[]);
      expect(maxDifference(Float32Array.from(values), Float32Array.from(expected))).toBeLessThan(1e-5);
    }
    await whole.runner.dispose();
    await split.runner.dispose();
  });

  test.each([
    { slidingWindow: 5 },
    { latent },
    chunked,
    { sinks: true, qkNorm: true, normAfterRotary: true, headDim: 6 },
  ])("%j: a cache filled in small units, by pieces of any length, gives the same", async (shape) => {
    const model = randomModel({ layers: 2, ...shape });
    const { runner } = await open(model, tiny);
    const { logits } = await runner.run({ sequences, positions });
    const { vocabSize } = model.model;
    const longest = Math.max(...sequences.map((ids) => ids.length));
    for (const step of [1, 2, 5]) {
      const cache = runner.createCache(sequences.length);
      for (let begin = 0; begin < longest; begin += step) {
        // A sequence that has ended goes on with some token; its logits are not compared.
        const pieces = sequences.map((ids) =>
          begin < ids.length ? ids.slice(begin, begin + step) : Int32Array.of(0),
        );
        const wanted = pieces.map((ids) => Int32Array.from(ids.keys()));
        const result = await runner.run({ sequences: pieces, positions: wanted, cache });
        let row = 0;
        let start = 0;
        for (const [s, ids] of sequences.entries()) {
          const count = pieces[s]?.length ?? 0;
          if (begin < ids.length) {
            const part = (values: Float32Array | undefined, from: number) =>
              values?.subarray(from * vocabSize, (from + count) * vocabSize);
            expect(maxDifference(part(result.logits, row), part(logits, start + begin))).toBeLessThan(1e-5);
          }
          row += count;
          start += ids.length;
        }
      }
      cache.dispose();
    }
    await runner.dispose();
  });
});

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
