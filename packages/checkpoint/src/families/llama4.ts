import type { ConfigReader } from "../config.js";
import { attentionBias } from "./config-rules.js";
import type { FamilyDescription, LayerAttention, StackedLayout } from "./family.js";
import { gatedNames, llamaNames } from "./llama-names.js";

const block = "model.layers.{l}.feed_forward";

const fused: StackedLayout = {
  kind: "fused",
  router: `${block}.router.weight`,
  gateUp: `${block}.experts.gate_up_proj`,
  down: `${block}.experts.down_proj`,
  order: "columns",
};

/**
 * Llama 4 (model card, Meta 2025), alone or as the language model of its multimodal checkpoints: the gate weight
 * multiplies the expert's input; some layers do not rotate; the others see chunks and norm queries and keys after.
 */
export const llama4: FamilyDescription = {
  name: "llama4_text",
  aliases: ["llama4"],
  title: "Llama 4",
  reference: "Llama 4 model card",
  config: {
    experts: ["num_local_experts"],
    topK: ["num_experts_per_tok"],
    expertWidth: ["intermediate_size"],
    denseWidth: ["intermediate_size_mlp"],
    defaults: { epsilon: 1e-5, theta: 500_000, contextLength: 131_072, kvHeads: 8, headDim: 128, topK: 1 },
  },
  tensors: { ...llamaNames, dense: gatedNames(block) },
  norm: "rms",
  attention: {
    kind: "gqa",
    bias: attentionBias,
    outputBias: attentionBias,
    normAfterRotary: true,
    interleaved: true,
    perLayer: layerAttention,
  },
  // Published fp8 checkpoints keep every expert on its own.
  layouts: [fused, { kind: "separate", router: fused.router, experts: gatedNames(`${block}.experts.{e}`) }],
  router: { order: "topk-sigmoid", settings: () => ({ scalesInput: true }) },
  shared: {
    names: gatedNames(`${block}.shared_expert`),
    width: (config) => config.integer("intermediate_size"),
  },
  moeLayers: (config) => {
    if (config.get("moe_layers")) {
      const layers = new Set(config.integers("moe_layers"));
      return (layer) => layers.has(layer);
    }
    const step = config.integer("interleave_moe_layer_step", 1);
    return (layer) => (layer + 1) % step === 0;
  },
  notes: {
    routing:
      "the top-k of the logits, then sigmoid of each, which multiplies the expert's input; a shared expert",
    exact: "every gate weight is the sigmoid of its own logit, so slicing router rows equals masking",
  },
};

function layerAttention(config: ConfigReader): (layer: number) => LayerAttention {
  const listed = config.integers("no_rope_layers");
  const interval = config.integer("no_rope_layer_interval", 4);
  const types = config.strings("layer_types");
  const chunk = config.isNull("attention_chunk_size")
    ? undefined
    : config.integer("attention_chunk_size", 8192);
  const plainNorm = config.boolean("use_qk_norm", true);
  // Published configs have a number there.
  const tuning = config.get("attn_temperature_tuning")?.value ?? true;
  const temperature = tuning
    ? { floor: config.positive("floor_scale", 8192), scale: config.number("attn_scale", 0.1) }
    : undefined;
  return (layer) => {
    // Despite the key's name, 1 marks a layer that rotates.
    const rotates = listed.length > 0 ? listed[layer] === 1 : (layer + 1) % interval !== 0;
    const isChunked = types ? types[layer] === "chunked_attention" : rotates;
    return {
      rotates,
      plainNorm: plainNorm && rotates,
      ...(isChunked && chunk !== undefined && { chunk }),
      ...(temperature && !rotates && { temperature }),
    };
  };
}
