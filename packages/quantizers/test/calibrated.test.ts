import { reference } from "@coppice/backend-reference";
import type { WorkStore } from "@coppice/calibrate";
import { type LoadedCheckpoint, loadModel, memoryFolder, memoryTarget } from "@coppice/checkpoint";
import { openFolder } from "@coppice/checkpoint/node";
import { type InputSums, Rng, type TensorRef } from "@coppice/core";
import {
  awq,
  gptq,
  modelMatrices,
  type QuantizeCheckpointOptions,
  quantizeCheckpoint,
  rtn,
  uniformFormat,
} from "@coppice/quantizers";
import { beforeAll, describe, expect, it } from "vitest";
import { EditedWeights } from "../src/edited-weights.js";
import { batchesOf, embed, HiddenStates } from "../src/hidden-states.js";
import { attendedSums, attentionSums, type LayerRun, loadLayer, moeSums } from "../src/observe-layer.js";

const fixtures = new URL("../../plugin-kit/fixtures/", import.meta.url).pathname;
const backend = await reference.create({}, undefined);
const rng = Rng.fromSeed(11);
const text = (count: number) =>
  Array.from({ length: count }, () => Int32Array.from({ length: 24 }, () => rng.integer(250)));
const sequences = text(10);
const held = text(4);

async function outputs({ model, weights }: LoadedCheckpoint): Promise<Float32Array> {
  await using runner = await backend.load({ model, weights });
  const positions = held.map(({ length }) => Int32Array.from({ length }, (_, i) => i));
  return (await runner.run({ sequences: held, positions })).logits as Float32Array;
}

/** Root of the mean squared difference over that of the values. */
function distance(a: Float32Array, b: Float32Array): number {
  const sum = (of: (i: number) => number) => a.reduce((total, _, i) => total + of(i) ** 2, 0);
  return Math.sqrt(sum((i) => a[i]! - b[i]!) / sum((i) => a[i]!));
}

const four = uniformFormat({ bits: 4, groupSize: 16, symmetric: true });
const eight = uniformFormat({ bits: 8, groupSize: 16, symmetric: true, head: 8, embedding: 8 });

async function quantized(checkpoint: LoadedCheckpoint, options: QuantizeCheckpointOptions) {
  const target = memoryTarget();
  const summary = await quantizeCheckpoint(checkpoint, target, options);
  return { summary, files: target.files, output: await loadModel(memoryFolder(target.files)) };
}

describe.each(["mixtral", "qwen2_moe"])("%s quantized by its inputs", (family) => {
  let checkpoint: LoadedCheckpoint;
  let plain: Float32Array;
  const calibration = { backend, sequences };
  beforeAll(async () => {
    checkpoint = await loadModel(await openFolder(`${fixtures}${family}`));
    plain = await outputs(checkpoint);
  });

  it("changes what every matrix puts out less than rounding does", async () => {
    const quantizers = [await gptq.create({ leastTokens: 1 }, undefined), await rtn.create({}, undefined)];
    const results: Awaited<ReturnType<typeof quantized>>[] = [];
    for (const quantizer of quantizers) {
      results.push(await quantized(checkpoint, { quantizer, calibration, format: four }));
    }
    // What the first layer reads does not depend on what was quantized before it.
    const [byInputs, byRounding] = results as [(typeof results)[0], (typeof results)[0]];
    const layer = checkpoint.model.layers[0]!;
    const { attention, feedForward } = layer;
    if (attention.kind !== "gqa") throw new Error(attention.kind);
    const weights = new EditedWeights(checkpoint.weights);
    const batches = batchesOf(sequences);
    const states = new HiddenStates(undefined);
    await embed(checkpoint.model, weights, batches, states);
    const run: LayerRun = { model: checkpoint.model, layer, weights, backend, batches, states };
    const read = await attentionSums(run);
    const cases: [TensorRef, InputSums][] = [
      [attention.query.weight, read],
      [attention.value.weight, read],
      [attention.output.weight, (await attendedSums(run))!],
    ];
    if (feedForward.kind === "moe") {
      await using runner = await loadLayer(run);
      const { experts } = await moeSums(run, runner, { from: 0, to: feedForward.experts.length }, false);
      for (const [expert, { gate, up, down }] of feedForward.experts.entries()) {
        const { inputs, units } = experts.get(expert)!;
        cases.push([gate!, inputs], [up, inputs], [down, units]);
      }
    }
    for (const [ref, { gram }] of cases) {
      const before = await checkpoint.weights.read(ref);
      const error = async ({ output }: (typeof results)[0]) => {
        const now = modelMatrices(output.model).find(({ weight }) => weight.name === `${ref.name}_packed`)!;
        const after = await output.weights.read(now.weight);
        const columns = ref.shape[1]!;
        let sum = 0;
        for (let start = 0; start < before.length; start += columns) {
          const moved = before.subarray(start, start + columns).map((value, i) => after[start + i]! - value);
          moved.forEach((a, i) => {
            sum += moved.reduce((inner, b, j) => inner + a * b * gram[i * columns + j]!, 0);
          });
        }
        return sum;
      };
      expect((await error(byInputs)) / (await error(byRounding)), ref.name).toBeLessThan(0.9);
    }
    const fallen = byInputs.summary.matrices.filter(({ fallback }) => fallback);
    // Backends do not show what dense layers and down of shared experts read.
    const unseen = /shared_expert\.down_proj|mlp\.(gate|up|down)_proj$/;
    expect(fallen.every(({ module }) => unseen.test(module))).toBe(true);
    expect(fallen.length > 0).toBe(family === "qwen2_moe");
    expect(byRounding.summary.matrices.every(({ fallback }) => fallback === undefined)).toBe(true);
  });

  it("is the same model after scaling and rotation, but for what rounding changes", async () => {
    const least = distance(
      plain,
      await outputs(
        (await quantized(checkpoint, { quantizer: await rtn.create({}, undefined), format: eight })).output,
      ),
    );
    const quantizer = await awq.create({ leastTokens: 1, steps: 4 }, undefined);
    const scaled = await quantized(checkpoint, { quantizer, calibration, format: eight });
    expect(distance(plain, await outputs(scaled.output))).toBeLessThan(2 * least);
    const gainsOf = ({ model, weights }: LoadedCheckpoint) =>
      weights.read(model.layers[1]!.feedForwardNorm.weight!);
    expect(await gainsOf(scaled.output)).not.toEqual(await gainsOf(checkpoint));
    const rotated = await quantized(checkpoint, { quantizer, calibration, format: eight, rotate: 3 });
    expect(distance(plain, await outputs(rotated.output))).toBeLessThan(2 * least);
    expect(new Set(await rotated.output.weights.read(rotated.output.model.finalNorm.weight!))).toEqual(
      new Set([1]),
    );
  });

  it("has the same bytes with little memory and a store", async () => {
    const quantizer = await gptq.create({ leastTokens: 8 }, undefined);
    const files = new Map<string, Uint8Array>();
    const store: WorkStore = {
      label: "memory",
      list: async () => [...files.keys()],
      read: async (name) => files.get(name)!,
      write: async (name, bytes) => void files.set(name, bytes.slice()),
      remove: async (name) => void files.delete(name),
      freeBytes: async () => undefined,
    };
    const whole = await quantized(checkpoint, { quantizer, calibration, format: four });
    const pieces = await quantized(checkpoint, {
      quantizer,
      calibration: { ...calibration, store, sumBytes: 150_000 },
      format: four,
    });
    expect(files.size).toBe(0);
    for (const [name, bytes] of whole.files) {
      expect(Buffer.compare(pieces.files.get(name)!, bytes), name).toBe(0);
    }
  });

  it("falls back for experts that see too little, and says so", async () => {
    const quantizer = await gptq.create({ leastTokens: 60 }, undefined);
    const { summary } = await quantized(checkpoint, { quantizer, calibration, format: four });
    const fallen = summary.matrices.filter(({ fallback }) => fallback?.includes("fewer than 60"));
    expect(fallen.length).toBeGreaterThan(0);
    expect(fallen.every(({ expert }) => expert !== undefined)).toBe(true);
  });

  it("needs data", async () => {
    const quantizer = await gptq.create({}, undefined);
    await expect(quantized(checkpoint, { quantizer, format: four })).rejects.toMatchObject({
      code: "COPPICE_USAGE",
    });
    const nothing = { backend, sequences: [new Int32Array(0)] };
    await expect(
      quantized(checkpoint, { quantizer, format: four, calibration: nothing }),
    ).rejects.toMatchObject({ code: "COPPICE_TASK_EMPTY" });
  });
});
