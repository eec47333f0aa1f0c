import { decoderNames } from "./decoder-names.js";
import type { FamilyDescription } from "./family.js";

/** Mixtral (arXiv 2401.04088): softmax over all experts, top-k, always divided by the sum of the chosen. */
export const mixtral: FamilyDescription = {
  name: "mixtral",
  title: "Mixtral",
  config: {
    experts: ["num_local_experts", "num_experts"],
    topK: ["num_experts_per_tok"],
    expertWidth: ["intermediate_size"],
    defaults: { epsilon: 1e-5, theta: 1e6, contextLength: 131_072 },
  },
  tensors: decoderNames,
  layouts: [
    {
      kind: "separate",
      router: "model.layers.{l}.block_sparse_moe.gate.weight",
      experts: {
        gate: "model.layers.{l}.block_sparse_moe.experts.{e}.w1.weight",
        up: "model.layers.{l}.block_sparse_moe.experts.{e}.w3.weight",
        down: "model.layers.{l}.block_sparse_moe.experts.{e}.w2.weight",
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
  router: { order: "softmax-topk", normalize: true },
  slidingWindow: (config) => (config.get("sliding_window") ? config.integer("sliding_window") : undefined),
};
