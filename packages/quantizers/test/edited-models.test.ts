import { reference } from "@coppice/backend-reference";
import { type MoeModel, type Quantizer, Rng, type Runner, type ScaleInputsRequest } from "@coppice/core";
import { type RandomModelShape, randomModel, sampleShapes } from "@coppice/plugin-kit";
import { describe, expect, it } from "vitest";
import { EditedWeights } from "../src/edited-weights.js";
import {
  type FoldTarget,
  foldAttentionNorm,
  foldExpertNorm,
  foldUnits,
  foldValues,
} from "../src/fold-scales.js";
import { modelMatrices, moduleOf } from "../src/model-matrices.js";
import { rotateModel } from "../src/rotate.js";
import { Rotation } from "../src/rotation.js";

const sequences = [Int32Array.of(3, 1, 4, 1, 5, 9, 2, 6), Int32Array.of(2, 7, 1)];

async function logitsOf(model: MoeModel, weights: EditedWeights): Promise<Float32Array> {
  const backend = await reference.create({}, undefined);
  await using runner: Runner = await backend.load({ model, weights });
  const positions = sequences.map(({ length }) => Int32Array.from({ length }, (_, i) => i));
  return (await runner.run({ sequences, positions })).logits as Float32Array;
}

/** Largest difference relative to the largest logit. */
function difference(a: Float32Array, b: Float32Array): number {
  const most = a.reduce((max, value) => Math.max(max, Math.abs(value)), 0);
  return a.reduce((max, value, i) => Math.max(max, Math.abs(value - b[i]!)), 0) / most;
}

/** Random factors, one for all tied channels. */
function randomScales(asked: ScaleInputsRequest[]): Quantizer {
  const rng = Rng.fromSeed(5);
  return {
    needs: { inputs: true },
    quantize: () => Promise.reject(new Error("nothing is quantized here")),
    scaleInputs: async (request) => {
      asked.push(request);
      const factors = Float64Array.from({ length: request.columns }, () => Math.exp(rng.normal()));
      return factors.map((factor, i) => (request.tied ? factors[request.tied[i]!]! : factor));
    },
  };
}

const shapes = Object.entries<RandomModelShape>({
  ...sampleShapes,
  "two-groups": { seed: 90, heads: 4, kvHeads: 2 },
});

describe("scales folded into weights", () => {
  for (const [name, shape] of shapes) {
    it(`change nothing: ${name}`, async () => {
      const { model, weights: whole } = randomModel(shape);
      const plain = await logitsOf(model, new EditedWeights(whole));
      const weights = new EditedWeights(whole);
      const asked: ScaleInputsRequest[] = [];
      const all = modelMatrices(model).map((matrix) => ({
        ...matrix,
        module: moduleOf(matrix),
        format: { bits: 4, groupSize: 16, symmetric: true } as const,
      }));
      const target: FoldTarget = {
        quantizer: randomScales(asked),
        weights,
        formatted: new Map(all.map((matrix) => [matrix.weight.name, matrix])),
      };
      const sums = (columns: number) => ({
        tokens: 1,
        gram: new Float64Array(columns * columns),
        magnitude: new Float64Array(columns),
      });
      for (const layer of model.layers) {
        const { attention, feedForward } = layer;
        await foldAttentionNorm(target, layer, sums(model.hiddenSize));
        if (attention.kind === "gqa")
          await foldValues(target, layer, sums(attention.heads * attention.headDim));
        await foldExpertNorm(target, layer, sums(model.hiddenSize));
        if (feedForward.kind !== "moe") continue;
        for (const [expert, { width }] of feedForward.experts.entries()) {
          await foldUnits(target, layer, expert, sums(width));
        }
      }
      expect(asked.length).toBeGreaterThanOrEqual(2 * model.layers.length);
      const changed = await weights.read(model.layers[0]!.attentionNorm.weight!);
      expect(changed).not.toEqual(await whole.read(model.layers[0]!.attentionNorm.weight!));
      expect(difference(plain, await logitsOf(model, weights))).toBeLessThan(2e-4);
    });
  }
});

describe("rotation", () => {
  it("is orthogonal for sizes with any odd part, and spreads single channels", () => {
    for (const size of [1, 2, 8, 12, 15, 20, 96]) {
      const rotation = new Rotation(size, Rng.fromSeed(size));
      const rows = Array.from({ length: size }, (_, i) => {
        const row = new Float32Array(size);
        row[i] = 1;
        rotation.apply(row, 0);
        return row;
      });
      for (const [i, a] of rows.entries()) {
        for (const [j, b] of rows.entries()) {
          const product = a.reduce((sum, value, k) => sum + value * b[k]!, 0);
          expect(Math.abs(product - (i === j ? 1 : 0))).toBeLessThan(1e-6);
        }
        if (size === 96) expect(Math.max(...a.map(Math.abs))).toBeLessThan(0.2);
      }
    }
  });

  for (const [name, shape] of shapes) {
    it(`changes nothing, or is refused: ${name}`, async () => {
      const { model, weights: whole } = randomModel(shape);
      const weights = new EditedWeights(whole);
      const rotated = rotateModel({ model, mtpLayers: 0 }, weights, 7);
      if (model.tied || model.finalNorm.kind === "layer" || name === "skipped-experts") {
        await expect(rotated).rejects.toMatchObject({ code: "COPPICE_FAMILY_UNSUPPORTED" });
        return;
      }
      await rotated;
      expect(await weights.read(model.finalNorm.weight!)).toEqual(new Float32Array(model.hiddenSize).fill(1));
      expect(await weights.read(model.embedding)).not.toEqual(await whole.read(model.embedding));
      const plain = await logitsOf(model, new EditedWeights(whole));
      expect(difference(plain, await logitsOf(model, weights))).toBeLessThan(2e-4);
    });
  }
});
