import { attentionBias, normalizeByKey } from "./config-rules.js";
import type { FamilyDescription } from "./family.js";
import { exactWords } from "./family-notes.js";
import { fusedLayout, llamaNames, qwenLayout } from "./llama-names.js";

/** OLMoE (arXiv 2409.02060): norms over the whole projections of query and key, which may be clipped after. */
export const olmoe: FamilyDescription = {
  name: "olmoe",
  title: "OLMoE",
  reference: "arXiv 2409.02060",
  config: {
    experts: ["num_experts", "num_local_experts"],
    topK: ["num_experts_per_tok"],
    expertWidth: ["intermediate_size"],
    defaults: { epsilon: 1e-5, theta: 10_000, contextLength: 4096, topK: 8 },
  },
  tensors: llamaNames,
  norm: "rms",
  attention: {
    kind: "gqa",
    bias: attentionBias,
    outputBias: attentionBias,
    norms: { query: "q_norm", key: "k_norm", over: "projection" },
    clip: "clip_qkv",
  },
  layouts: [qwenLayout(), fusedLayout()],
  router: { order: "softmax-topk", settings: normalizeByKey(false) },
  notes: {
    routing: "softmax over all experts, then the top-k, divided by their sum only if norm_topk_prob",
    exact: exactWords.normalizedByKey,
  },
};
