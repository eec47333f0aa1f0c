import type { FamilyDescription, MlpNames, RouterNames, SeparateLayout, StackedLayout } from "./family.js";

/** Names of the tensors around the experts that Llama introduced and most families kept. */
export const llamaNames = {
  embedding: "model.embed_tokens.weight",
  finalNorm: "model.norm",
  head: "lm_head",
  attentionNorm: "model.layers.{l}.input_layernorm",
  feedForwardNorm: "model.layers.{l}.post_attention_layernorm",
} as const satisfies FamilyDescription["tensors"];

/** Gate, up and down below a block, such as `model.layers.{l}.mlp`. */
export function gatedNames(block: string): MlpNames {
  return { gate: `${block}.gate_proj`, up: `${block}.up_proj`, down: `${block}.down_proj` };
}

export const denseNames = gatedNames("model.layers.{l}.mlp");

/** The layout that Qwen2-MoE introduced and most families kept: gate, up and down of every expert. */
export function qwenLayout(router: Partial<RouterNames> = {}): SeparateLayout {
  return {
    kind: "separate",
    router: "model.layers.{l}.mlp.gate.weight",
    ...router,
    experts: gatedNames("model.layers.{l}.mlp.experts.{e}"),
  };
}

/** The layout of Mixtral: `w1` is the gate, `w3` up, `w2` down. */
export function mixtralLayout(router: Partial<RouterNames> = {}): SeparateLayout {
  const expert = "model.layers.{l}.block_sparse_moe.experts.{e}";
  return {
    kind: "separate",
    router: "model.layers.{l}.block_sparse_moe.gate.weight",
    ...router,
    experts: { gate: `${expert}.w1`, up: `${expert}.w3`, down: `${expert}.w2` },
  };
}

/** All experts in two tensors, as transformers 5 holds them and writes them with save_original_format=False. */
export function fusedLayout(router: Partial<RouterNames> = {}): StackedLayout {
  return {
    kind: "fused",
    router: "model.layers.{l}.mlp.gate.weight",
    ...router,
    gateUp: "model.layers.{l}.mlp.experts.gate_up_proj",
    down: "model.layers.{l}.mlp.experts.down_proj",
    order: "rows",
  };
}
