import type { FamilyDescription } from "./family.js";
import { fusedLayout, gatedNames, llamaNames } from "./llama-names.js";

const block = "model.layers.{l}.feed_forward";
const router = `${block}.router.weight`;

/** Jamba (arXiv 2403.19887): Mamba and attention layers; experts in every `expert_layer_period`-th layer. */
export const jamba: FamilyDescription = {
  name: "jamba",
  title: "Jamba",
  reference: "arXiv 2403.19887",
  editOnly: "Jamba's Mamba layers are not implemented",
  config: {
    experts: ["num_experts", "num_local_experts"],
    topK: ["num_experts_per_tok"],
    expertWidth: ["intermediate_size"],
    defaults: { epsilon: 1e-6, theta: 10_000, contextLength: 262_144, topK: 2 },
  },
  tensors: {
    ...llamaNames,
    finalNorm: "model.final_layernorm",
    feedForwardNorm: "model.layers.{l}.pre_ff_layernorm",
  },
  norm: "rms",
  attention: { kind: "other", name: "Mamba or attention" },
  layouts: [
    { kind: "separate", router, experts: gatedNames(`${block}.experts.{e}`) },
    {
      ...fusedLayout({ router }),
      gateUp: `${block}.experts.gate_up_proj`,
      down: `${block}.experts.down_proj`,
    },
  ],
  router: { order: "softmax-topk", settings: () => ({}) },
  moeLayers: (config) => {
    const period = config.integer("expert_layer_period", 2);
    const offset = config.integer("expert_layer_offset", 1, 0);
    return (layer) => layer % period === offset;
  },
  notes: {
    routing: "softmax over all experts, then the top-k, not divided by their sum",
    exact: "slicing router rows equals masking, but gate weights grow when experts go",
  },
};
