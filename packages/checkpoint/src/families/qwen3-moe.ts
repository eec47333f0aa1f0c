import { attentionBias, normalizeByKey, qwenMoeLayers } from "./config-rules.js";
import type { FamilyDescription } from "./family.js";
import { exactWords } from "./family-notes.js";
import { denseNames, fusedLayout, llamaNames, qwenLayout } from "./llama-names.js";

/**
 * Qwen3-MoE (arXiv 2505.09388): norms on each head of query and key, dense layers where the config says so. The
 * language models of Qwen3-VL-MoE and Qwen3-Omni compute the same for text, whose three positions are equal;
 * Qwen3-VL-MoE keeps the fused matrices transposed.
 */
export const qwen3Moe: FamilyDescription = {
  name: "qwen3_moe",
  aliases: ["qwen3_vl_moe_text", "qwen3_omni_moe_text"],
  title: "Qwen3-MoE",
  reference: "arXiv 2505.09388",
  config: {
    experts: ["num_experts", "num_local_experts"],
    topK: ["num_experts_per_tok"],
    expertWidth: ["moe_intermediate_size"],
    denseWidth: ["intermediate_size"],
    defaults: { epsilon: 1e-6, theta: 10_000, contextLength: 32_768, kvHeads: 4, topK: 8 },
  },
  tensors: { ...llamaNames, dense: denseNames },
  norm: "rms",
  attention: {
    kind: "gqa",
    bias: attentionBias,
    outputBias: attentionBias,
    norms: { query: "q_norm", key: "k_norm", over: "head" },
    perLayer: (config) => {
      const slides = config.boolean("use_sliding_window", false);
      const slidingWindow = slides ? config.integer("sliding_window", 4096) : undefined;
      return () => (slidingWindow === undefined ? {} : { slidingWindow });
    },
  },
  layouts: [qwenLayout(), { ...fusedLayout(), order: "either" }],
  router: { order: "softmax-topk", settings: normalizeByKey(false) },
  moeLayers: qwenMoeLayers,
  notes: {
    routing: "softmax over all experts, then the top-k, divided by their sum if norm_topk_prob",
    exact: exactWords.normalizedByKey,
  },
};
