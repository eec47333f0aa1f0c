import { attentionBias } from "./config-rules.js";
import type { FamilyDescription, StackedLayout } from "./family.js";
import { exactWords } from "./family-notes.js";
import { llamaNames } from "./llama-names.js";

const block = "model.layers.{l}.block_sparse_moe";

const published: StackedLayout = {
  kind: "fused",
  router: `${block}.router.layer.weight`,
  gateUp: `${block}.input_linear.weight`,
  down: `${block}.output_linear.weight`,
  order: "rows",
};

const held: StackedLayout = {
  kind: "fused",
  router: `${block}.router.weight`,
  gateUp: `${block}.experts.gate_up_proj`,
  down: `${block}.experts.down_proj`,
  order: "rows",
};

/** Granite-MoE (Granite 3.0, arXiv 2408.13359): fused experts, factors on embeddings, attention, residuals and logits. */
export const granitemoe: FamilyDescription = {
  name: "granitemoe",
  title: "Granite-MoE",
  reference: "arXiv 2408.13359",
  config: {
    experts: ["num_local_experts"],
    topK: ["num_experts_per_tok"],
    expertWidth: ["intermediate_size"],
    defaults: { epsilon: 1e-6, theta: 10_000, contextLength: 2048, topK: 2 },
  },
  tensors: llamaNames,
  norm: "rms",
  attention: {
    kind: "gqa",
    bias: attentionBias,
    outputBias: attentionBias,
    scale: (config) => config.number("attention_multiplier", 1),
  },
  layouts: [published, held],
  router: { order: "topk-softmax", settings: () => ({}) },
  factors: (config) => ({
    embedding: config.number("embedding_multiplier", 1),
    residual: config.number("residual_multiplier", 1),
    logits: 1 / config.number("logits_scaling", 1),
  }),
  notes: {
    routing: "the top-k of the logits, then softmax over those",
    exact: exactWords.ratios,
  },
};
