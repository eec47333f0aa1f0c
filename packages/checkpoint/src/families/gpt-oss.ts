import { slidingLayers } from "./config-rules.js";
import type { FamilyDescription } from "./family.js";
import { llamaNames } from "./llama-names.js";

/**
 * GPT-OSS (arXiv 2508.10925): attention sinks, every second layer with a sliding window, clamped SwiGLU with biases,
 * YaRN; published in MXFP4. Its two layouts have the same names and differ in the ends `_blocks` and `_scales`.
 */
export const gptOss: FamilyDescription = {
  name: "gpt_oss",
  title: "GPT-OSS",
  reference: "arXiv 2508.10925",
  config: {
    experts: ["num_local_experts", "num_experts"],
    topK: ["num_experts_per_tok", "experts_per_token"],
    expertWidth: ["intermediate_size"],
    defaults: {
      epsilon: 1e-5,
      theta: 150_000,
      contextLength: 131_072,
      kvHeads: 8,
      headDim: 64,
      topK: 4,
      rotary: {
        rope_type: "yarn",
        factor: 32,
        beta_fast: 32,
        beta_slow: 1,
        truncate: false,
        original_max_position_embeddings: 4096,
      },
    },
  },
  tensors: llamaNames,
  norm: "rms",
  attention: {
    kind: "gqa",
    bias: { key: "attention_bias", fallback: true },
    outputBias: { key: "attention_bias", fallback: true },
    sinks: "sinks",
    perLayer: (config) =>
      slidingLayers(
        config.strings("layer_types"),
        (layer) => layer % 2 === 0,
        () => config.integer("sliding_window", 128),
      ),
  },
  layouts: [
    {
      kind: "fused",
      router: "model.layers.{l}.mlp.router.weight",
      routerBias: "model.layers.{l}.mlp.router.bias",
      gateUp: "model.layers.{l}.mlp.experts.gate_up_proj",
      down: "model.layers.{l}.mlp.experts.down_proj",
      order: "interleaved",
      biases: true,
    },
  ],
  router: { order: "topk-softmax", settings: () => ({}) },
  activation: { kind: "clamped-swiglu", limit: 7, alpha: 1.702 },
  notes: {
    routing: "the top-k of the logits with their bias, then softmax over those",
    exact:
      "gate weights depend on ratios of kept logits alone, so slicing router rows and biases equals masking",
  },
};
