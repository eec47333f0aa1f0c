import { decoderNames, denseNames, headNormNames } from "./decoder-names.js";
import type { FamilyDescription } from "./family.js";

/** Qwen3-MoE (arXiv 2505.09388): norms on each head of query and key, dense layers where the config says so. */
export const qwen3Moe: FamilyDescription = {
  name: "qwen3_moe",
  title: "Qwen3-MoE",
  config: {
    experts: ["num_experts", "num_local_experts"],
    topK: ["num_experts_per_tok"],
    expertWidth: ["moe_intermediate_size"],
    denseWidth: ["intermediate_size"],
    defaults: { epsilon: 1e-6, theta: 10_000, contextLength: 32_768 },
  },
  tensors: { ...decoderNames, ...headNormNames, dense: denseNames },
  layouts: [
    {
      kind: "separate",
      router: "model.layers.{l}.mlp.gate.weight",
      experts: {
        gate: "model.layers.{l}.mlp.experts.{e}.gate_proj.weight",
        up: "model.layers.{l}.mlp.experts.{e}.up_proj.weight",
        down: "model.layers.{l}.mlp.experts.{e}.down_proj.weight",
      },
    },
    // As transformers 5 holds it in memory, and writes it with save_original_format=False.
    {
      kind: "fused",
      router: "model.layers.{l}.mlp.gate.weight",
      gateUp: "model.layers.{l}.mlp.experts.gate_up_proj",
      down: "model.layers.{l}.mlp.experts.down_proj",
    },
  ],
  router: { order: "softmax-topk", normalize: { key: "norm_topk_prob", fallback: false } },
  attentionBias: "attention_bias",
  slidingWindow: (config) =>
    config.boolean("use_sliding_window", false) ? config.integer("sliding_window", 4096) : undefined,
  moeLayers: (config) => {
    const dense = new Set(config.integers("mlp_only_layers"));
    const step = config.integer("decoder_sparse_step", 1);
    return (layer) => !dense.has(layer) && (layer + 1) % step === 0;
  },
};
