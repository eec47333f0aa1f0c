import type { ConfigReader } from "../config.js";
import type { FamilyDescription } from "./family.js";
import { exactWords } from "./family-notes.js";
import { sigmoidSettings } from "./sigmoid-groups.js";

const mixer = "backbone.layers.{l}.mixer";
const names = {
  router: `${mixer}.gate.weight`,
  correction: `${mixer}.gate.e_score_correction_bias`,
} as const;

/**
 * Nemotron-H with experts (arXiv 2504.03624, Nemotron 3 Nano): layers are Mamba-2, attention, an MLP or experts
 * without a gate, whose activation is the square of relu.
 */
export const nemotronH: FamilyDescription = {
  name: "nemotron_h",
  title: "Nemotron-H MoE",
  reference: "arXiv 2504.03624",
  editOnly: "Nemotron-H's Mamba-2 layers are not implemented",
  config: {
    experts: ["n_routed_experts", "num_local_experts"],
    topK: ["num_experts_per_tok"],
    groups: ["n_group"],
    groupsKept: ["topk_group"],
    expertWidth: ["moe_intermediate_size"],
    expertInput: ["moe_latent_size"],
    defaults: { epsilon: 1e-5, theta: 10_000, contextLength: 4096, topK: 2 },
  },
  layerCount: (config) => layerKinds(config).length,
  body: "backbone.",
  tensors: {
    embedding: "backbone.embeddings.weight",
    finalNorm: "backbone.norm_f",
    head: "lm_head",
    attentionNorm: "backbone.layers.{l}.norm",
    feedForwardNorm: "backbone.layers.{l}.norm",
  },
  norm: "rms",
  attention: { kind: "other", name: "Mamba-2, attention or none" },
  layouts: [
    {
      kind: "separate",
      ...names,
      experts: { up: `${mixer}.experts.{e}.up_proj`, down: `${mixer}.experts.{e}.down_proj` },
    },
    {
      kind: "fused",
      ...names,
      up: `${mixer}.experts.up_proj`,
      down: `${mixer}.experts.down_proj`,
      order: "rows",
    },
  ],
  router: { order: "sigmoid-topk", settings: sigmoidSettings({ groups: 1, kept: 1, scale: 1 }) },
  activation: { kind: "relu2" },
  shared: {
    names: { up: `${mixer}.shared_experts.up_proj`, down: `${mixer}.shared_experts.down_proj` },
    width: (config) =>
      config.integer("n_shared_experts", 1, 0) === 0
        ? 0
        : config.integer("moe_shared_expert_intermediate_size", 7688),
  },
  moeLayers: (config) => {
    const kinds = layerKinds(config);
    return (layer) => kinds[layer] === "moe";
  },
  mtp: { at: ["mtp.layers."] },
  notes: {
    routing:
      "sigmoid of each logit, then the top-k by sigmoid plus correction, divided by their sum if norm_topk_prob, times routed_scaling_factor; shared experts",
    exact: exactWords.corrected,
  },
};

/** A list, or a pattern with a letter for every layer, `E` for experts. */
function layerKinds(config: ConfigReader): readonly string[] {
  const list = config.strings("layers_block_type") ?? config.strings("layer_types");
  if (list) return list;
  const pattern = config.string("hybrid_override_pattern");
  if (pattern === undefined)
    throw config.invalid("layers_block_type", null, "a list with the kind of every layer");
  return [...pattern].map((letter) => (letter === "E" ? "moe" : letter));
}
