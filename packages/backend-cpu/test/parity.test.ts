import { cpu } from "@coppice/backend-cpu";
import { reference } from "@coppice/backend-reference";
import {
  type ActivationSpec,
  type Backend,
  type MoeModel,
  Rng,
  type RotaryScaling,
  type RouterSpec,
  type Runner,
  type RunRequest,
} from "@coppice/core";
import { type RandomModelShape, randomModel } from "@coppice/plugin-kit";
import fc from "fast-check";
import { expect, test } from "vitest";
import { maxDifference } from "./max-difference.js";
import { randomPlan } from "./random-plan.js";

/** Sequences that share beginnings, of different lengths. */
function randomBatch(model: MoeModel, rng: Rng): Int32Array[] {
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

const plain = fc.record({
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
const anyKind = fc.record(
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

test.each([
  ["plain layers", plain],
  ["layers of every kind", anyKind],
])("%s, any plan, any batch: the same as the reference backend", async (_, shapes) => {
  const backends = await Promise.all([cpu.create({}, undefined), reference.create({}, undefined)]);
  await fc.assert(
    fc.asyncProperty(shapes as fc.Arbitrary<RandomModelShape & { seed: number }>, (shape) =>
      compare(backends, shape),
    ),
    { numRuns: 20, seed: 1 },
  );
});

async function compare(
  backends: readonly [Backend, Backend],
  shape: RandomModelShape & { readonly seed: number },
): Promise<void> {
  const loaded = randomModel({ ...shape, topK: 2 });
  const rng = Rng.fromSeed(shape.seed);
  const plan = randomPlan(loaded.model, rng);
  const sequences = randomBatch(loaded.model, rng);
  const positions = sequences.map((ids) => Int32Array.from(ids.keys()).filter(() => rng.bernoulli(0.5)));
  const targets = positions.map((wanted) => wanted.map(() => rng.integer(loaded.model.vocabSize)));
  const both = (request: RunRequest) => runBoth(backends, loaded, request);
  // A router map may nearly cancel the chosen values, and hidden states then grow without bound.
  const close = (found: Float32Array | undefined, expected: Float32Array | undefined) => {
    const largest = expected?.reduce((most, value) => Math.max(most, Math.abs(value)), 1) ?? 1;
    expect(maxDifference(found, expected) / largest).toBeLessThan(1e-4);
  };
  const [a, b] = await both({ sequences, plan, positions });
  close(a.logits, b.logits);
  const [c, d] = await both({ sequences, plan, positions, targets });
  close(c.targetLogProbs, d.targetLogProbs);
  const to = loaded.model.layers.length;
  const [e, f] = await both({ sequences, plan, boundaries: [1, to] });
  for (const layer of [1, to]) close(e.boundaries.get(layer), f.boundaries.get(layer));
}

async function runBoth(
  backends: readonly [Backend, Backend],
  loaded: ReturnType<typeof randomModel>,
  request: RunRequest,
) {
  const results = [];
  for (const backend of backends) {
    const runner: Runner = await backend.load(loaded);
    try {
      results.push(await runner.run(request));
    } finally {
      await runner.dispose();
    }
  }
  return results as [(typeof results)[0], (typeof results)[0]];
}
