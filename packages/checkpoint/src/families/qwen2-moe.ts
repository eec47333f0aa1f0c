import { normalizeByKey, qwenMoeLayers, slidingLayers } from "./config-rules.js";
import type { FamilyDescription } from "./family.js";
import { exactWords } from "./family-notes.js";
import { denseNames, fusedLayout, gatedNames, llamaNames, qwenLayout } from "./llama-names.js";

/** Qwen2-MoE and Qwen1.5-MoE (arXiv 2407.10671): a shared expert whose output a sigmoid gate multiplies. */
export const qwen2Moe: FamilyDescription = {
  name: "qwen2_moe",
  title: "Qwen2-MoE",
  reference: "arXiv 2407.10671",
  config: {
    experts: ["num_experts", "num_local_experts"],
    topK: ["num_experts_per_tok"],
    expertWidth: ["moe_intermediate_size"],
    denseWidth: ["intermediate_size"],
    defaults: { epsilon: 1e-6, theta: 10_000, contextLength: 32_768, kvHeads: 16, topK: 4 },
  },
  tensors: { ...llamaNames, dense: denseNames },
  norm: "rms",
  attention: {
    kind: "gqa",
    bias: { key: "qkv_bias", fallback: true },
    outputBias: false,
    perLayer: (config) => {
      const slides = config.boolean("use_sliding_window", false);
      const first = config.integer("max_window_layers", 28, 0);
      // As transformers 5 has it: even layers below max_window_layers.
      const usual = (layer: number) => slides && layer % 2 === 0 && layer < first;
      return slidingLayers(config.strings("layer_types"), usual, () =>
        config.integer("sliding_window", 4096),
      );
    },
  },
  layouts: [qwenLayout(), fusedLayout()],
  router: { order: "softmax-topk", settings: normalizeByKey(false) },
  shared: {
    names: gatedNames("model.layers.{l}.mlp.shared_expert"),
    width: (config) => config.integer("shared_expert_intermediate_size", 5632),
    gate: "model.layers.{l}.mlp.shared_expert_gate",
  },
  moeLayers: qwenMoeLayers,
  notes: {
    routing:
      "softmax over all experts, then the top-k, divided by their sum if norm_topk_prob; a shared expert with a sigmoid gate",
    exact: exactWords.normalizedByKey,
  },
};
