import { reference } from "@coppice/backend-reference";
import type { InputSums, LayerTap, TensorRef } from "@coppice/core";
import { randomModel, sampleShapes } from "@coppice/plugin-kit";
import { describe, expect, it } from "vitest";
import { EditedWeights } from "../src/edited-weights.js";
import { batchesOf, embed, HiddenStates } from "../src/hidden-states.js";
import {
  advance,
  attendedSums,
  attentionSums,
  type LayerRun,
  loadLayer,
  moeSums,
} from "../src/observe-layer.js";

const backend = await reference.create({}, undefined);
const sequences = [Int32Array.of(3, 1, 4, 1, 5, 9, 2, 6), Int32Array.of(2, 7, 1), Int32Array.of(8, 2, 8)];

/** tr(W G Wᵀ), which is the sum of ‖W x‖² over the inputs. */
async function squares(weights: EditedWeights, ref: TensorRef, { gram }: InputSums): Promise<number> {
  const values = await weights.read(ref);
  const [rows, columns] = ref.shape as [number, number];
  let sum = 0;
  for (let row = 0; row < rows; row++) {
    for (let i = 0; i < columns; i++) {
      for (let j = 0; j < columns; j++) {
        sum += values[row * columns + i]! * values[row * columns + j]! * gram[i * columns + j]!;
      }
    }
  }
  return sum;
}

const norm = (values: Float32Array) => values.reduce((sum, value) => sum + value * value, 0);

describe("sums over what a layer reads", () => {
  const shapes = {
    "wide heads": { seed: 3, heads: 4, kvHeads: 2, headDim: 12, hidden: 16, layers: 3 },
    latent: { ...sampleShapes["latent-attention"], layers: 3 },
    "scaled inputs": { ...sampleShapes["scaled-inputs"], layers: 3 },
  } as const;
  for (const [name, shape] of Object.entries(shapes)) {
    it(`are those of the whole model, seen by its tap: ${name}`, async () => {
      const { model, weights: whole } = randomModel(shape);
      const weights = new EditedWeights(whole);
      const batches = batchesOf(sequences);
      const states = new HiddenStates(undefined);
      await embed(model, weights, batches, states);
      await using runner = await backend.load({ model, weights });
      const seen: LayerTap[] = [];
      const { boundaries } = await runner.run({
        sequences,
        boundaries: model.layers.map(({ index }) => index + 1),
        tap: {
          fields: ["residual", "input", "routing", "expertOutputs"],
          onLayer: (shown) => seen.push(structuredClone(shown)),
        },
      });
      for (const layer of model.layers) {
        const run: LayerRun = { model, layer, weights, backend, batches, states };
        const { attention, feedForward } = layer;
        if (feedForward.kind !== "moe") {
          await advance(run);
          continue;
        }
        const own = await loadLayer(run);
        const tap = seen.find((one) => one.layer === layer.index) as Required<LayerTap>;
        const hidden = await states.read(batches[0]!);
        if (attention.kind === "other") throw new Error(attention.kind);
        // What the output projection makes of its inputs is what attention added to the residual stream.
        const attended = (await attendedSums(run))!;
        const bias = attention.output.bias;
        expect(bias).toBeUndefined();
        const added = tap.residual.map((value, i) => value - hidden[i]!);
        expect(attended.tokens).toBe(tap.tokens);
        const shown = await squares(weights, attention.output.weight, attended);
        expect(Math.abs(shown / norm(added) - 1)).toBeLessThan(1e-4);
        const read = await attentionSums(run);
        const rms = hidden.map((value, i) => {
          const token = Math.floor(i / model.hiddenSize) * model.hiddenSize;
          const row = hidden.subarray(token, token + model.hiddenSize);
          return value / Math.sqrt(norm(row) / model.hiddenSize + layer.attentionNorm.epsilon);
        });
        const gain = await weights.read(layer.attentionNorm.weight!);
        rms.forEach((value, i) => {
          rms[i] = value * gain[i % gain.length]!;
        });
        const trace = gain.reduce((sum, _, i) => sum + read.gram[i * gain.length + i]!, 0);
        expect(Math.abs(trace / norm(rms) - 1)).toBeLessThan(1e-5);
        const count = feedForward.experts.length;
        const half = Math.floor(count / 2);
        const first = await moeSums(run, own, { from: 0, to: half }, true);
        const second = await moeSums(run, own, { from: half, to: count }, false);
        expect(second.inputs).toBeUndefined();
        expect(first.inputs!.tokens).toBe(tap.tokens);
        const experts = new Map([...first.experts, ...second.experts]);
        for (const [expert, { down }] of feedForward.experts.entries()) {
          const { inputs, units } = experts.get(expert)!;
          const choices = [...tap.slots.keys()].filter((choice) => tap.slots[choice] === expert);
          expect([inputs.tokens, units.tokens]).toEqual([choices.length, choices.length]);
          const { hiddenSize } = model;
          const outputs = choices.reduce(
            (sum, choice) =>
              sum + norm(tap.expertOutputs.subarray(choice * hiddenSize, (choice + 1) * hiddenSize)),
            0,
          );
          expect(await squares(weights, down, units)).toBeCloseTo(outputs, 4);
          const magnitude = choices.reduce((sum, choice) => {
            const token = Math.floor(choice / tap.topK);
            const gate = feedForward.router.scalesInput ? tap.gates[choice]! : 1;
            return sum + Math.abs(gate * tap.input[token * hiddenSize]!);
          }, 0);
          expect(inputs.magnitude[0]).toBeCloseTo(magnitude, 4);
        }
        await own.dispose();
        await advance(run);
        const next = await states.read(batches[0]!);
        const expected = boundaries.get(layer.index + 1)!;
        next.forEach((value, i) => {
          expect(Math.abs(value - expected[i]!)).toBeLessThan(1e-5 * Math.max(1, Math.abs(expected[i]!)));
        });
      }
    });
  }
});
