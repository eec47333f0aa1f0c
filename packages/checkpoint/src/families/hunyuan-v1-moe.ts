import { attentionBias, normalizeAlways } from "./config-rules.js";
import type { FamilyDescription } from "./family.js";
import { exactWords } from "./family-notes.js";
import { fusedLayout, gatedNames, llamaNames, qwenLayout } from "./llama-names.js";

const router = "model.layers.{l}.mlp.gate.wg.weight";

/** HunYuan-A13B (model card, Tencent 2025): norms on queries and keys after the rotation, a shared MLP. */
export const hunyuanV1Moe: FamilyDescription = {
  name: "hunyuan_v1_moe",
  title: "HunYuan-MoE",
  reference: "Hunyuan-A13B technical report",
  config: {
    experts: ["num_experts", "num_local_experts"],
    topK: ["moe_topk", "num_experts_per_tok"],
    expertWidth: ["intermediate_size"],
    defaults: { epsilon: 1e-5, theta: 10_000, contextLength: 2048, topK: 1 },
  },
  tensors: llamaNames,
  norm: "rms",
  attention: {
    kind: "gqa",
    bias: attentionBias,
    outputBias: attentionBias,
    norms: { query: "query_layernorm", key: "key_layernorm", over: "head" },
    normAfterRotary: true,
  },
  layouts: [qwenLayout({ router }), fusedLayout({ router })],
  router: { order: "softmax-topk", settings: normalizeAlways },
  shared: {
    names: gatedNames("model.layers.{l}.mlp.shared_mlp"),
    width: (config) => config.integer("intermediate_size"),
  },
  notes: {
    routing: "softmax over all experts, then the top-k, divided by their sum; a shared MLP",
    exact: exactWords.ratios,
  },
};
