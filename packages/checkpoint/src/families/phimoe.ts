import { attentionBias, slidingWindow } from "./config-rules.js";
import type { FamilyDescription } from "./family.js";
import { fusedLayout, llamaNames, mixtralLayout } from "./llama-names.js";

/**
 * Phi-3.5-MoE (arXiv 2404.14219, routing: arXiv 2409.12136): sparsemixer, LayerNorm with bias. Of a longrope config
 * transformers 5 takes the short factors at every length, and the stated factors on cos and sin; so does this.
 */
export const phimoe: FamilyDescription = {
  name: "phimoe",
  title: "Phi-3.5-MoE",
  reference: "arXiv 2404.14219, arXiv 2409.12136",
  config: {
    experts: ["num_local_experts"],
    topK: ["num_experts_per_tok"],
    expertWidth: ["intermediate_size"],
    defaults: { epsilon: 1e-5, theta: 1e6, contextLength: 131_072, kvHeads: 8, topK: 2 },
  },
  tensors: llamaNames,
  norm: "layer",
  attention: {
    kind: "gqa",
    bias: attentionBias,
    outputBias: attentionBias,
    statedMagnitudes: true,
    perLayer: slidingWindow,
  },
  layouts: [mixtralLayout(), fusedLayout({ router: "model.layers.{l}.mlp.router.weight" })],
  router: {
    order: "sparsemixer",
    settings: (config) => ({ jitter: config.number("router_jitter_noise", 0.01) }),
  },
  headBias: { key: "lm_head_bias", fallback: false },
  notes: {
    routing:
      "sparsemixer: the best expert and then the next, each weighted by a softmax among those within a tolerance of it",
    exact:
      "slicing router rows equals masking; a dropped expert that was within the tolerance changes the other's weight",
  },
};
