import { attentionBias, denseFirst, sharedExpertsWidth } from "./config-rules.js";
import type { FamilyDescription } from "./family.js";
import { denseNames, fusedLayout, gatedNames, llamaNames, qwenLayout } from "./llama-names.js";
import { sigmoidSettings } from "./sigmoid-groups.js";

const correction = "model.layers.{l}.mlp.gate.e_score_correction_bias";

/**
 * DeepSeek-V3 and R1 (arXiv 2412.19437), Kimi-K2 (arXiv 2507.20534): latent attention, sigmoid scores with a
 * correction for the choice, groups, shared experts, and layers for multi-token prediction after the last one.
 */
export const deepseekV3: FamilyDescription = {
  name: "deepseek_v3",
  aliases: ["kimi_k2"],
  title: "DeepSeek-V3 and Kimi-K2",
  reference: "arXiv 2412.19437, arXiv 2507.20534",
  config: {
    experts: ["n_routed_experts", "num_local_experts"],
    topK: ["num_experts_per_tok"],
    groups: ["n_group"],
    groupsKept: ["topk_group"],
    expertWidth: ["moe_intermediate_size"],
    denseWidth: ["intermediate_size"],
    defaults: { epsilon: 1e-6, theta: 10_000, contextLength: 4096, topK: 8 },
  },
  tensors: { ...llamaNames, dense: denseNames },
  norm: "rms",
  attention: {
    kind: "mla",
    bias: attentionBias,
    interleaved: { key: "rope_interleave", fallback: true },
  },
  layouts: [qwenLayout({ correction }), fusedLayout({ correction })],
  router: { order: "sigmoid-topk", settings: sigmoidSettings({ groups: 8, kept: 4, scale: 2.5 }) },
  shared: {
    names: gatedNames("model.layers.{l}.mlp.shared_experts"),
    width: sharedExpertsWidth(1),
  },
  moeLayers: denseFirst(3),
  mtp: { at: "layers" },
  notes: {
    routing:
      "sigmoid of each logit, then the top-k by sigmoid plus correction within the best groups, divided by their sum if norm_topk_prob, times routed_scaling_factor; shared experts",
    exact:
      "slicing router rows and corrections equals masking; with groups as many experts must stay in each",
  },
};
