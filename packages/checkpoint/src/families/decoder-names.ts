/** Names of the tensors around the experts that Llama introduced and most families kept. */
export const decoderNames = {
  embedding: "model.embed_tokens.weight",
  finalNorm: "model.norm.weight",
  head: "lm_head.weight",
  attentionNorm: "model.layers.{l}.input_layernorm.weight",
  feedForwardNorm: "model.layers.{l}.post_attention_layernorm.weight",
  query: "model.layers.{l}.self_attn.q_proj",
  key: "model.layers.{l}.self_attn.k_proj",
  value: "model.layers.{l}.self_attn.v_proj",
  output: "model.layers.{l}.self_attn.o_proj",
} as const;

/** Norms over each head of query and key. */
export const headNormNames = {
  queryNorm: "model.layers.{l}.self_attn.q_norm.weight",
  keyNorm: "model.layers.{l}.self_attn.k_norm.weight",
} as const;

export const denseNames = {
  gate: "model.layers.{l}.mlp.gate_proj.weight",
  up: "model.layers.{l}.mlp.up_proj.weight",
  down: "model.layers.{l}.mlp.down_proj.weight",
} as const;
