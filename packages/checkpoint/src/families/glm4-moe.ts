import { attentionBias, denseFirst, sharedExpertsWidth } from "./config-rules.js";
import type { FamilyDescription } from "./family.js";
import { exactWords } from "./family-notes.js";
import { denseNames, fusedLayout, gatedNames, llamaNames, qwenLayout } from "./llama-names.js";
import { sigmoidSettings } from "./sigmoid-groups.js";

const correction = "model.layers.{l}.mlp.gate.e_score_correction_bias";

/** GLM-4.5, 4.6 and 4.7 (arXiv 2508.06471): the router of DeepSeek-V3, half of each head rotates. */
export const glm4Moe: FamilyDescription = {
  name: "glm4_moe",
  title: "GLM-4.5",
  reference: "arXiv 2508.06471",
  config: {
    experts: ["n_routed_experts", "num_local_experts"],
    topK: ["num_experts_per_tok"],
    groups: ["n_group"],
    groupsKept: ["topk_group"],
    expertWidth: ["moe_intermediate_size"],
    denseWidth: ["intermediate_size"],
    defaults: { epsilon: 1e-5, theta: 10_000, contextLength: 131_072, kvHeads: 8, topK: 8 },
  },
  tensors: { ...llamaNames, dense: denseNames },
  norm: "rms",
  attention: {
    kind: "gqa",
    bias: attentionBias,
    outputBias: false,
    norms: { query: "q_norm", key: "k_norm", over: "head", when: { key: "use_qk_norm", fallback: false } },
    partialRotary: 0.5,
  },
  layouts: [qwenLayout({ correction }), fusedLayout({ correction })],
  router: { order: "sigmoid-topk", settings: sigmoidSettings({ groups: 1, kept: 1, scale: 1 }) },
  shared: {
    names: gatedNames("model.layers.{l}.mlp.shared_experts"),
    width: sharedExpertsWidth(1),
  },
  moeLayers: denseFirst(1),
  mtp: { at: "layers" },
  notes: {
    routing:
      "sigmoid of each logit, then the top-k by sigmoid plus correction, divided by their sum if norm_topk_prob, times routed_scaling_factor; shared experts",
    exact: exactWords.corrected,
  },
};
