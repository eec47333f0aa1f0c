import type { FamilyDescription } from "./family.js";
import { exactWords } from "./family-notes.js";

const ffn = "transformer.blocks.{l}.ffn";

/** DBRX (model card, Databricks 2024): rows of all experts stacked, gate weights divided by their L_p norm. */
export const dbrx: FamilyDescription = {
  name: "dbrx",
  title: "DBRX",
  reference: "DBRX model card",
  editOnly: "DBRX's attention with one clipped projection is not implemented",
  config: {
    experts: ["ffn_config.moe_num_experts"],
    topK: ["ffn_config.moe_top_k"],
    expertWidth: ["ffn_config.ffn_hidden_size"],
    hiddenSize: ["d_model"],
    contextLength: ["max_seq_len"],
    defaults: { epsilon: 1e-5, theta: 10_000, contextLength: 2048, topK: 1 },
  },
  layerCount: (config) => config.integer("n_layers"),
  body: "transformer.",
  tensors: {
    embedding: "transformer.wte.weight",
    finalNorm: "transformer.norm_f",
    head: "lm_head",
    attentionNorm: "transformer.blocks.{l}.norm_attn_norm.norm_1",
    feedForwardNorm: "transformer.blocks.{l}.norm_attn_norm.norm_2",
  },
  norm: "layer",
  attention: { kind: "other", name: "clipped grouped-query attention" },
  layouts: [
    {
      kind: "fused",
      router: `${ffn}.router.layer.weight`,
      gate: `${ffn}.experts.mlp.w1`,
      up: `${ffn}.experts.mlp.v1`,
      down: `${ffn}.experts.mlp.w2`,
      order: "rows",
      downColumns: true,
      flat: true,
    },
  ],
  router: {
    order: "softmax-topk",
    settings: (config) => {
      const key = "ffn_config.moe_normalize_expert_weights";
      return config.isNull(key) ? {} : { normalize: { power: config.positive(key, 1) } };
    },
  },
  notes: {
    routing:
      "softmax over all experts, then the top-k, divided by their L_p norm, p of moe_normalize_expert_weights",
    exact: exactWords.ratios,
  },
};
