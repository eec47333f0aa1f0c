export const [hidden, width, experts, vocab] = [8, 6, 4, 12] as const;
const sizes = { hidden_size: hidden, vocab_size: vocab, num_hidden_layers: 2, max_position_embeddings: 64 };

export type Shapes = [string, number[]][];

export interface EditedCheckpoint {
  readonly config: object;
  readonly shapes: Shapes;
  /** Layers with experts. */
  readonly moe: number[];
  /** What its router is described as. */
  readonly router: object;
  /** Layers for multi-token prediction with experts. */
  readonly mtp?: number;
}

/** A checkpoint with its ends, something around the experts, and experts in the given layers. */
export function shapes(body: string, layers: (layer: number) => Shapes, ends: Shapes): Shapes {
  return [
    ...ends,
    ["lm_head.weight", [vocab, hidden]],
    ...[0, 1].flatMap((layer) => [
      [`${body}${layer}.mixer.something`, [3]] as [string, number[]],
      ...layers(layer),
    ]),
  ];
}

export const qwenEnds = (body: string): Shapes => [
  [`${body}embed_tokens.weight`, [vocab, hidden]],
  [`${body}norm.weight`, [hidden]],
];

const gated = (block: string): Shapes =>
  Array.from(
    { length: experts },
    (_, e) =>
      [
        [`${block}.${e}.gate_proj.weight`, [width, hidden]],
        [`${block}.${e}.up_proj.weight`, [width, hidden]],
        [`${block}.${e}.down_proj.weight`, [hidden, width]],
      ] as Shapes,
  ).flat();

export const qwenLayer = (block: string): Shapes => [
  [`${block}.gate.weight`, [experts, hidden]],
  ...gated(`${block}.experts`),
  [`${block}.shared_expert.gate_proj.weight`, [10, hidden]],
  [`${block}.shared_expert.up_proj.weight`, [10, hidden]],
  [`${block}.shared_expert.down_proj.weight`, [hidden, 10]],
  [`${block}.shared_expert_gate.weight`, [1, hidden]],
];

export const qwenConfig = {
  ...sizes,
  num_experts: experts,
  num_experts_per_tok: 2,
  moe_intermediate_size: width,
  shared_expert_intermediate_size: 10,
};

const nemotronLayer = (mixer: string): Shapes => [
  [`${mixer}.gate.weight`, [experts, hidden]],
  [`${mixer}.gate.e_score_correction_bias`, [experts]],
  ...Array.from(
    { length: experts },
    (_, e) =>
      [
        [`${mixer}.experts.${e}.up_proj.weight`, [width, 5]],
        [`${mixer}.experts.${e}.down_proj.weight`, [5, width]],
      ] as Shapes,
  ).flat(),
  [`${mixer}.shared_experts.up_proj.weight`, [10, hidden]],
  [`${mixer}.shared_experts.down_proj.weight`, [hidden, 10]],
];

/** A small checkpoint of every family that is edited only: its config and the shapes of its tensors. */
export const made: Record<string, EditedCheckpoint> = {
  dbrx: {
    config: {
      model_type: "dbrx",
      d_model: hidden,
      n_layers: 2,
      n_heads: 2,
      vocab_size: vocab,
      max_seq_len: 64,
      ffn_config: {
        moe_num_experts: experts,
        moe_top_k: 2,
        ffn_hidden_size: width,
        moe_normalize_expert_weights: 2,
      },
    },
    shapes: shapes(
      "transformer.blocks.",
      (l) => [
        [`transformer.blocks.${l}.ffn.router.layer.weight`, [experts, hidden]],
        ...["w1", "v1", "w2"].map(
          (name) =>
            [`transformer.blocks.${l}.ffn.experts.mlp.${name}`, [experts * width, hidden]] as [
              string,
              number[],
            ],
        ),
      ],
      [
        ["transformer.wte.weight", [vocab, hidden]],
        ["transformer.norm_f.weight", [hidden]],
      ],
    ),
    moe: [0, 1],
    router: { order: "softmax-topk", normalize: { power: 2 } },
  },
  jamba: {
    config: {
      ...sizes,
      model_type: "jamba",
      num_experts: experts,
      num_experts_per_tok: 2,
      intermediate_size: width,
      expert_layer_period: 2,
      expert_layer_offset: 1,
    },
    shapes: shapes(
      "model.layers.",
      (l) =>
        l === 1
          ? [
              [`model.layers.1.feed_forward.router.weight`, [experts, hidden]],
              ...gated("model.layers.1.feed_forward.experts"),
            ]
          : [["model.layers.0.feed_forward.up_proj.weight", [width, hidden]]],
      [
        ["model.embed_tokens.weight", [vocab, hidden]],
        ["model.final_layernorm.weight", [hidden]],
      ],
    ),
    moe: [1],
    router: { order: "softmax-topk" },
  },
  qwen3_next: {
    config: { ...qwenConfig, model_type: "qwen3_next" },
    shapes: [
      ...shapes("model.layers.", (l) => qwenLayer(`model.layers.${l}.mlp`), qwenEnds("model.")),
      ...qwenLayer("mtp.layers.0.mlp"),
      ["mtp.fc.weight", [hidden, 2 * hidden]],
    ],
    moe: [0, 1],
    router: { order: "softmax-topk", normalize: { power: 1 } },
    mtp: 1,
  },
  qwen3_5_moe: {
    config: { model_type: "qwen3_5_moe", text_config: { ...qwenConfig, model_type: "qwen3_5_moe_text" } },
    shapes: [
      ...shapes(
        "model.language_model.layers.",
        (l) => [
          ...qwenLayer(`model.language_model.layers.${l}.mlp`).filter(
            ([name]) => !name.includes(".experts."),
          ),
          [`model.language_model.layers.${l}.mlp.experts.gate_up_proj`, [experts, 2 * width, hidden]],
          [`model.language_model.layers.${l}.mlp.experts.down_proj`, [experts, hidden, width]],
        ],
        qwenEnds("model.language_model."),
      ),
      ["model.visual.patch_embed.weight", [4]],
    ],
    moe: [0, 1],
    router: { order: "softmax-topk", normalize: { power: 1 } },
  },
  nemotron_h: {
    config: {
      ...sizes,
      model_type: "nemotron_h",
      hybrid_override_pattern: "ME",
      n_routed_experts: experts,
      num_experts_per_tok: 2,
      moe_intermediate_size: width,
      moe_latent_size: 5,
      moe_shared_expert_intermediate_size: 10,
      routed_scaling_factor: 2.5,
      layer_norm_epsilon: 1e-5,
      num_nextn_predict_layers: 1,
    },
    shapes: [
      ...shapes("backbone.layers.", (l) => (l === 1 ? nemotronLayer("backbone.layers.1.mixer") : []), [
        ["backbone.embeddings.weight", [vocab, hidden]],
        ["backbone.norm_f.weight", [hidden]],
      ]),
      ["mtp.layers.0.mixer.q_proj.weight", [hidden, hidden]],
      ...nemotronLayer("mtp.layers.1.mixer"),
    ],
    moe: [1],
    router: { order: "sigmoid-topk", scale: 2.5, correction: { shape: [experts] } },
    mtp: 1,
  },
};
