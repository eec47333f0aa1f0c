import { normalizeAlways, normalizeByKey, qwenMoeLayers } from "./config-rules.js";
import type { FamilyDescription } from "./family.js";
import { exactWords } from "./family-notes.js";
import { fusedLayout, gatedNames, llamaNames, qwenLayout } from "./llama-names.js";

/** Qwen3-Next (model card, Qwen 2025): gated delta net and gated attention layers, a shared expert with a gate. */
export const qwen3Next: FamilyDescription = {
  name: "qwen3_next",
  title: "Qwen3-Next",
  reference: "Qwen3-Next model card",
  editOnly: "Qwen3-Next's gated delta net layers are not implemented",
  config: {
    experts: ["num_experts"],
    topK: ["num_experts_per_tok"],
    expertWidth: ["moe_intermediate_size"],
    defaults: { epsilon: 1e-6, theta: 10_000, contextLength: 32_768, topK: 10 },
  },
  tensors: llamaNames,
  norm: "rms",
  attention: { kind: "other", name: "gated delta net or gated attention" },
  layouts: [qwenLayout(), { ...fusedLayout(), order: "either" }],
  router: { order: "softmax-topk", settings: normalizeByKey(true) },
  shared: {
    names: gatedNames("model.layers.{l}.mlp.shared_expert"),
    width: (config) => config.integer("shared_expert_intermediate_size", 512),
    gate: "model.layers.{l}.mlp.shared_expert_gate",
  },
  moeLayers: qwenMoeLayers,
  mtp: { at: ["mtp.layers."] },
  notes: {
    routing:
      "softmax over all experts, then the top-k, divided by their sum if norm_topk_prob; a shared expert with a sigmoid gate",
    exact: exactWords.normalizedByKey,
  },
};

/** Qwen3.5-MoE (model card, Qwen 2026): Qwen3-Next within a multimodal model, experts fused on disk. */
export const qwen35Moe: FamilyDescription = {
  ...qwen3Next,
  name: "qwen3_5_moe",
  aliases: ["qwen3_5_moe_text"],
  title: "Qwen3.5-MoE",
  reference: "Qwen3.5 model card",
  editOnly: "Qwen3.5's gated delta net layers are not implemented",
  config: { ...qwen3Next.config, defaults: { ...qwen3Next.config.defaults, topK: 8 } },
  router: { order: "softmax-topk", settings: normalizeAlways },
  notes: {
    routing:
      "softmax over all experts, then the top-k, divided by their sum; a shared expert with a sigmoid gate",
    exact: exactWords.ratios,
  },
};
