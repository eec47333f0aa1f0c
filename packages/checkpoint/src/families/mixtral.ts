import { normalizeAlways, slidingWindow } from "./config-rules.js";
import type { FamilyDescription } from "./family.js";
import { exactWords } from "./family-notes.js";
import { fusedLayout, llamaNames, mixtralLayout } from "./llama-names.js";

/** Mixtral (arXiv 2401.04088): softmax over all experts, top-k, always divided by the sum of the chosen. */
export const mixtral: FamilyDescription = {
  name: "mixtral",
  title: "Mixtral",
  reference: "arXiv 2401.04088",
  config: {
    experts: ["num_local_experts", "num_experts"],
    topK: ["num_experts_per_tok"],
    expertWidth: ["intermediate_size"],
    defaults: { epsilon: 1e-5, theta: 1e6, contextLength: 131_072, kvHeads: 8, topK: 2 },
  },
  tensors: llamaNames,
  norm: "rms",
  attention: {
    kind: "gqa",
    bias: false,
    outputBias: false,
    perLayer: slidingWindow,
  },
  layouts: [mixtralLayout(), fusedLayout()],
  router: { order: "softmax-topk", settings: normalizeAlways },
  notes: {
    routing: "softmax over all experts, then the top-k, divided by their sum",
    exact: exactWords.ratios,
  },
};
