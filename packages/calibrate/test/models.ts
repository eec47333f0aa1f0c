import { reference } from "@coppice/backend-reference";
import {
  type Backend,
  createRegistry,
  type ExtraField,
  Rng,
  type Runner,
  type StatisticsField,
} from "@coppice/core";
import { intoMemory, type MemoryModel, memoryModel, randomModel, sampleShapes } from "@coppice/plugin-kit";
import { fixtureNames, loadFixture } from "@coppice/plugin-kit/node";
import { expect } from "vitest";

export function referenceBackend(): Promise<Backend> {
  return createRegistry([reference]).create("backend", "reference", {}, undefined);
}

export async function load({ model, weights }: MemoryModel): Promise<Runner> {
  return (await referenceBackend()).load({ model, weights });
}

export function randomSequences(vocab: number, lengths: readonly number[], seed = 3): Int32Array[] {
  const rng = Rng.fromSeed(seed);
  return lengths.map((length) => Int32Array.from({ length }, () => rng.integer(vocab)));
}

/** Kinds of routing that the checkpoints of the families do not have, or not together. */
const shapes = [
  "many-experts",
  "latent-attention",
  "low-rank-queries",
  "corrected-softmax",
  "scaled-inputs",
] as const;

/** Models of every kind of routing. */
export const models: Readonly<Record<string, () => Promise<MemoryModel>>> = {
  ...Object.fromEntries(
    fixtureNames.map((name) => [
      name,
      async () => {
        const { model, weights } = await loadFixture(name);
        return intoMemory(model, weights);
      },
    ]),
  ),
  ...Object.fromEntries(shapes.map((name) => [name, async () => randomModel(sampleShapes[name])])),
  "a model with dense layers and gates that are not normalised": async () =>
    randomModel({ seed: 4, layers: 4, denseLayers: [0, 3], normalize: false, experts: 6 }),
  "routers that skip experts": async () => {
    const { model, tensors } = randomModel({ seed: 6, experts: 6, topK: 3 });
    const skip = { rule: "ratio", threshold: 0.6 } as const;
    const layers = model.layers.map((layer) => {
      const { feedForward } = layer;
      if (feedForward.kind !== "moe") return layer;
      return { ...layer, feedForward: { ...feedForward, router: { ...feedForward.router, skip } } };
    });
    return memoryModel({ ...model, layers }, tensors);
  },
};

/** The largest difference, relative to the larger of each pair or, with `signed`, to the largest value of all. */
export function relativeError(
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  { signed = false } = {},
): number {
  if (actual.length !== expected.length) return Number.POSITIVE_INFINITY;
  const largest = Array.from(expected).reduce((most, value) => Math.max(most, Math.abs(value)), 1e-30);
  return Array.from(expected).reduce((most, value, i) => {
    const scale = signed ? largest : Math.max(1e-30, Math.abs(value));
    const error = Math.abs((actual[i] as number) - value) / scale;
    return Math.max(error, most);
  }, 0);
}

/** Sums of signed values, or of squares of sums that were rounded, may cancel: only the largest says what is near. */
const signed = new Set<StatisticsField | ExtraField>([
  "topLogit",
  "routedLogit",
  "logitGram",
  "outputSum",
  "everyOutputSum",
  "outputGram",
  "outputCosine",
  "unitSquares",
]);

export function expectNear(
  field: StatisticsField | ExtraField,
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  relative: number,
): void {
  const error = relativeError(actual, expected, { signed: signed.has(field) });
  expect(error, field).toBeLessThanOrEqual(relative);
}
