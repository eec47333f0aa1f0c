import { normalizeAlways } from "./config-rules.js";
import type { FamilyDescription } from "./family.js";
import { exactWords } from "./family-notes.js";
import { fusedLayout, llamaNames, mixtralLayout } from "./llama-names.js";

/** MiniMax-M2 (model card, MiniMax 2025): sigmoid scores with a correction for the choice; published in fp8. */
export const minimaxM2: FamilyDescription = {
  name: "minimax_m2",
  title: "MiniMax-M2",
  reference: "MiniMax-M2 model card",
  config: {
    experts: ["num_local_experts", "num_experts"],
    topK: ["num_experts_per_tok"],
    expertWidth: ["intermediate_size"],
    defaults: { epsilon: 1e-6, theta: 5e6, contextLength: 196_608, kvHeads: 8, headDim: 128, topK: 8 },
  },
  tensors: llamaNames,
  norm: "rms",
  attention: {
    kind: "gqa",
    bias: false,
    outputBias: false,
    norms: { query: "q_norm", key: "k_norm", over: "projection" },
    partialRotary: 1,
  },
  layouts: [
    mixtralLayout({ correction: "model.layers.{l}.block_sparse_moe.e_score_correction_bias" }),
    fusedLayout({ correction: "model.layers.{l}.mlp.e_score_correction_bias" }),
  ],
  router: { order: "sigmoid-topk", settings: normalizeAlways },
  notes: {
    routing: "sigmoid of each logit, then the top-k by sigmoid plus correction, divided by their sum",
    exact: exactWords.corrected,
  },
};
