import type { FamilyDescription } from "./family.js";
import { denseNames, fusedLayout, gatedNames, llamaNames, qwenLayout } from "./llama-names.js";

const useBias = { key: "use_bias", fallback: false } as const;

/** ERNIE-4.5 (technical report, Baidu 2025): softmax scores with a correction for the choice, shared experts. */
export const ernie45Moe: FamilyDescription = {
  name: "ernie4_5_moe",
  title: "ERNIE-4.5",
  reference: "ERNIE 4.5 technical report",
  config: {
    experts: ["moe_num_experts", "num_experts"],
    topK: ["moe_k", "num_experts_per_tok"],
    capacity: ["moe_capacity"],
    expertWidth: ["moe_intermediate_size"],
    denseWidth: ["intermediate_size"],
    defaults: { epsilon: 1e-5, theta: 500_000, contextLength: 131_072, kvHeads: 4, topK: 6, tied: true },
  },
  tensors: { ...llamaNames, dense: denseNames },
  norm: "rms",
  attention: { kind: "gqa", bias: useBias, outputBias: useBias, interleaved: true },
  layouts: [
    qwenLayout({ correction: "model.layers.{l}.mlp.moe_statics.e_score_correction_bias" }),
    fusedLayout({ correction: "model.layers.{l}.mlp.gate.moe_statics.e_score_correction_bias" }),
  ],
  router: {
    order: "softmax-topk",
    settings: (config) => ({ normalize: { power: 1, least: config.number("moe_norm_min", 1e-12) } }),
  },
  shared: {
    names: gatedNames("model.layers.{l}.mlp.shared_experts"),
    width: (config) =>
      config.integer("moe_intermediate_size") * config.integer("moe_num_shared_experts", 2, 0),
    bias: useBias,
  },
  denseBias: useBias,
  headBias: useBias,
  moeLayers: (config) => {
    const interval = config.integer("moe_layer_interval", 1);
    const start = config.integer("moe_layer_start_index", 1, 0);
    const end = config.integer("moe_layer_end_index", -1, -1);
    return (layer) => (layer + 1) % interval === 0 && layer >= start && (end === -1 || layer <= end);
  },
  mtp: { at: ["model.mtp_block."] },
  notes: {
    routing:
      "softmax over all experts, then the top-k by probability plus correction, divided by their sum but at least by moe_norm_min; shared experts",
    exact:
      "slicing router rows and corrections equals masking while the chosen probabilities sum to moe_norm_min or more",
  },
};
