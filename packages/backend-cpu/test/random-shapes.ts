import type { ActivationSpec, MoeModel, Rng, RotaryScaling, RouterSpec } from "@coppice/core";
import fc from "fast-check";

/** Sequences that share beginnings, of different lengths. */
export function randomBatch(model: MoeModel, rng: Rng): Int32Array[] {
  const stems = Array.from({ length: 2 }, () =>
    Array.from({ length: 8 }, () => rng.integer(model.vocabSize)),
  );
  return Array.from({ length: 1 + rng.integer(6) }, () => {
    const stem = rng.pick(stems).slice(0, rng.integer(9));
    const rest = Array.from({ length: 1 + rng.integer(9) }, () => rng.integer(3));
    return Int32Array.from([...stem, ...rest]);
  });
}

const sizes = {
  seed: fc.nat(10_000),
  layers: fc.integer({ min: 1, max: 3 }),
  heads: fc.constantFrom(2, 4),
  kvHeads: fc.constantFrom(1, 2),
  headDim: fc.constantFrom(8, 16, 20),
  bias: fc.boolean(),
  tied: fc.boolean(),
};

export const plain = fc.record({
  ...sizes,
  experts: fc.integer({ min: 3, max: 20 }),
  normalize: fc.boolean(),
  qkNorm: fc.boolean(),
});

/** Contexts that rotary scalings refer to are a few positions, so that short sequences reach beyond them. */
const scaling = fc.constantFrom<RotaryScaling>(
  { kind: "linear", factor: 2 },
  { kind: "dynamic", factor: 2, originalContext: 6 },
  { kind: "llama3", factor: 4, lowFrequencyFactor: 1, highFrequencyFactor: 4, originalContext: 20 },
  {
    kind: "yarn",
    factor: 4,
    originalContext: 16,
    betaFast: 2,
    betaSlow: 0.3,
    attentionFactor: 1.2,
    truncate: true,
  },
);

/** Every kind of layer, in combinations that no family has. */
export const anyKind = fc.record(
  {
    ...sizes,
    latent: fc.record(
      {
        rank: fc.constantFrom(6, 8),
        queryRank: fc.constant(10),
        nopeDim: fc.constantFrom(4, 6, 16),
        rotaryDim: fc.constantFrom(2, 4, 8),
        valueDim: fc.constantFrom(3, 8, 20),
      },
      { requiredKeys: ["rank", "nopeDim", "rotaryDim", "valueDim"] },
    ),
    rotaryDimensions: fc.constantFrom(2, 4, 8),
    interleaved: fc.boolean(),
    scaling,
    qkNorm: fc.constantFrom<boolean | "projection" | "weightless">(true, "projection", "weightless"),
    normAfterRotary: fc.boolean(),
    clip: fc.constant(0.8),
    sinks: fc.boolean(),
    slidingWindow: fc.constantFrom(2, 4),
    plainLayers: fc.constantFrom([0], [1]),
    chunk: fc.constantFrom(3, 5),
    temperature: fc.constant({ floor: 2, scale: 0.3 }),
    norm: fc.constantFrom<"rms" | "layer">("rms", "layer"),
    mlpBias: fc.boolean(),
    activation: fc.constantFrom<ActivationSpec>(
      { kind: "relu2" },
      { kind: "clamped-swiglu", limit: 1, alpha: 1.7 },
    ),
    sharedWidth: fc.constantFrom(6, 12),
    sharedGate: fc.boolean(),
    denseLayers: fc.constantFrom([0], [1]),
    residualScale: fc.constantFrom(0.5, 0.3),
    logitScale: fc.constant(0.3),
    embeddingScale: fc.constant(3),
    headBias: fc.boolean(),
    router: fc.record(
      {
        order: fc.constantFrom<RouterSpec["order"]>(
          "softmax-topk",
          "sigmoid-topk",
          "topk-softmax",
          "topk-sigmoid",
        ),
        bias: fc.boolean(),
        correction: fc.boolean(),
        scalesInput: fc.constant(true as const),
      },
      { requiredKeys: ["order"] },
    ),
  },
  { requiredKeys: ["seed", "layers", "heads", "kvHeads", "headDim"] },
);
