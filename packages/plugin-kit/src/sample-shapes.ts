import type { RandomModelShape } from "./random-shape.js";

/**
 * Shapes of random models that together have every kind of part that a model description can say. Contexts that
 * rotary scalings refer to are a few positions, so that short sequences reach beyond them.
 */
export const sampleShapes = {
  "sliding-window": { seed: 51, slidingWindow: 4 },
  "query-key-norm": { seed: 52, qkNorm: true },
  biases: { seed: 53, bias: true },
  "dense-layers": { seed: 54, layers: 3, denseLayers: [1] },
  "tied-head": { seed: 55, tied: true },
  "unnormalised-gates": { seed: 56, normalize: false },
  "partial-rotary": { seed: 57, headDim: 12, rotaryDimensions: 4 },
  "one-head-per-group": { seed: 58, heads: 3, kvHeads: 3, hidden: 20, headDim: 4 },
  "many-experts": { seed: 59, experts: 24, topK: 5, width: 6 },
  bfloat16: { seed: 60, dtype: "BF16", mlpBias: true },
  /** Qwen2-MoE. */
  "shared-expert-gate": {
    seed: 61,
    normalize: false,
    bias: true,
    sharedWidth: 10,
    sharedGate: true,
    scaling: { kind: "linear", factor: 2.5 },
  },
  /** OLMoE. */
  "projection-norms": { seed: 62, qkNorm: "projection", clip: 1.2, kvHeads: 4, normalize: false },
  /** HunYuan-MoE. */
  "norm-after-rotary": {
    seed: 63,
    qkNorm: true,
    normAfterRotary: true,
    sharedWidth: 12,
    scaling: { kind: "dynamic", factor: 3, originalContext: 6 },
  },
  /** DeepSeek-V2. */
  "latent-attention": {
    seed: 64,
    layers: 3,
    denseLayers: [0],
    latent: { rank: 10, nopeDim: 6, rotaryDim: 8, valueDim: 5 },
    interleaved: true,
    experts: 8,
    // More than groups: otherwise the groups of the best experts are the best groups.
    topK: 3,
    normalize: false,
    router: { groups: { count: 4, keep: 2, score: "max" }, scale: 1.7 },
    sharedWidth: 24,
  },
  /** DeepSeek-V3. */
  "low-rank-queries": {
    seed: 65,
    latent: { rank: 8, queryRank: 12, nopeDim: 8, rotaryDim: 4, valueDim: 8 },
    bias: true,
    interleaved: true,
    scaling: {
      kind: "yarn",
      factor: 8,
      originalContext: 16,
      betaFast: 2,
      betaSlow: 0.3,
      attentionFactor: 1.2,
      truncate: true,
    },
    experts: 12,
    topK: 3,
    normalize: { power: 1, epsilon: 1e-20 },
    router: {
      order: "sigmoid-topk",
      correction: true,
      groups: { count: 3, keep: 2, score: "top2" },
      scale: 2.5,
    },
    sharedWidth: 12,
  },
  /** MiniMax-M2, GLM-4.5. */
  "sigmoid-scores": {
    seed: 66,
    qkNorm: "projection",
    rotaryDimensions: 4,
    experts: 6,
    router: { order: "sigmoid-topk", correction: true },
  },
  /** ERNIE-4.5. */
  "corrected-softmax": {
    seed: 67,
    interleaved: true,
    bias: true,
    mlpBias: true,
    experts: 6,
    normalize: { power: 1, least: 0.6 },
    router: { correction: true },
    sharedWidth: 6,
  },
  /** Phi-3.5-MoE. */
  sparsemixer: {
    seed: 68,
    norm: "layer",
    bias: true,
    headBias: true,
    experts: 6,
    normalize: false,
    router: { order: "sparsemixer", jitter: 0.2 },
    scaling: {
      kind: "longrope",
      shortFactors: [1, 1.1, 1.3, 1.6],
      longFactors: [1, 2, 5, 9],
      originalContext: 6,
      attentionFactor: 1.19,
      longAttentionFactor: 1.4,
    },
  },
  /** Granite-MoE. */
  multipliers: {
    seed: 69,
    attentionScale: 0.2,
    embeddingScale: 6,
    residualScale: 0.4,
    logitScale: 0.25,
    normalize: false,
    router: { order: "topk-softmax" },
  },
  /** GPT-OSS. */
  "attention-sinks": {
    seed: 70,
    layers: 3,
    bias: true,
    sinks: true,
    slidingWindow: 4,
    slidingLayers: [0, 2],
    mlpBias: true,
    activation: { kind: "clamped-swiglu", limit: 1.5, alpha: 1.702 },
    experts: 6,
    normalize: false,
    router: { order: "topk-softmax", bias: true },
    scaling: {
      kind: "yarn",
      factor: 32,
      originalContext: 8,
      betaFast: 1.1,
      betaSlow: 0.1,
      attentionFactor: 1.35,
      truncate: false,
    },
  },
  /** Llama-4. */
  "scaled-inputs": {
    seed: 71,
    layers: 3,
    plainLayers: [1],
    chunk: 4,
    temperature: { floor: 3, scale: 0.4 },
    interleaved: true,
    qkNorm: "weightless",
    normalize: false,
    router: { order: "topk-sigmoid", scalesInput: true },
    sharedWidth: 8,
    scaling: {
      kind: "llama3",
      factor: 8,
      lowFrequencyFactor: 1,
      highFrequencyFactor: 4,
      originalContext: 40,
    },
  },
  /** DBRX gates, Nemotron-H experts. */
  "ungated-experts": {
    seed: 72,
    layers: 3,
    denseLayers: [2],
    activation: { kind: "relu2" },
    mlpBias: true,
    sharedWidth: 10,
    experts: 6,
    normalize: { power: 2 },
  },
  /** A checkpoint that brings along a rule by which tokens skip experts. */
  "skipped-experts": {
    seed: 73,
    experts: 6,
    topK: 3,
    router: { skip: { rule: "top-p", threshold: 0.6, spare: 0.3 } },
  },
} as const satisfies Record<string, RandomModelShape>;

/** A property of models that a backend may refuse, when its author says so. */
export type ModelFeature = keyof typeof sampleShapes;
