import { applyPlan, families, loadModel, memoryFolder, memoryTarget } from "@coppice/checkpoint";
import { createPlan, type MlpSpec, moeLayers } from "@coppice/core";
import { describe, expect, it } from "vitest";
import { expectError } from "./helpers.js";
import { floats, loadMade, randomTensors, transposed } from "./made-checkpoint.js";

const [hidden, width, experts, vocab] = [8, 6, 4, 12] as const;
const sizes = { hidden_size: hidden, vocab_size: vocab, num_hidden_layers: 2, max_position_embeddings: 64 };

type Shapes = [string, number[]][];

/** A checkpoint with its ends, something around the experts, and experts in the given layers. */
function shapes(body: string, layers: (layer: number) => Shapes, ends: Shapes): Shapes {
  return [
    ...ends,
    ["lm_head.weight", [vocab, hidden]],
    ...[0, 1].flatMap((layer) => [
      [`${body}${layer}.mixer.something`, [3]] as [string, number[]],
      ...layers(layer),
    ]),
  ];
}

const qwenEnds = (body: string): Shapes => [
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

const qwenLayer = (block: string): Shapes => [
  [`${block}.gate.weight`, [experts, hidden]],
  ...gated(`${block}.experts`),
  [`${block}.shared_expert.gate_proj.weight`, [10, hidden]],
  [`${block}.shared_expert.up_proj.weight`, [10, hidden]],
  [`${block}.shared_expert.down_proj.weight`, [hidden, 10]],
  [`${block}.shared_expert_gate.weight`, [1, hidden]],
];

const qwenConfig = {
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

const made: Record<string, { config: object; shapes: Shapes; moe: number[]; router: object; mtp?: number }> =
  {
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

describe("families that are edited only", () => {
  it("are all tried here, but for GLM-4.5V", () => {
    const edited = families.filter(({ editOnly }) => editOnly !== undefined).map(({ name }) => name);
    expect(edited.filter((name) => name !== "glm4v_moe_text").sort()).toEqual(Object.keys(made).sort());
  });

  for (const [family, { config, shapes: all, moe, router, mtp = 0 }] of Object.entries(made)) {
    it(`lists what surgery needs of ${family}, and says why it does not run`, async () => {
      const tensors = randomTensors(all);
      await using checkpoint = await loadMade(config, tensors);
      const { model, edits } = checkpoint;
      expect(model.editOnly).toMatch(/not implemented/);
      expect(moeLayers(model).map(({ index }) => index)).toEqual(moe);
      expect(moeLayers(model)[0]!.feedForward.router).toMatchObject({ topK: 2, ...router });
      expect(model.layers.every(({ attention }) => attention.kind === "other")).toBe(true);
      expect(edits).toHaveLength(moe.length + mtp);
      expect(edits.every((set) => set.experts === experts)).toBe(true);
      // Every tensor is an end, edited, shared, of another layer for prediction, or listed as not described.
      const listed = edits.flatMap((set) =>
        [...set.rows, ...set.separate, ...set.stacked].map(({ tensor }) => tensor.name),
      );
      const rest = [...tensors.keys()].filter(
        (name) =>
          !listed.includes(name) && !/^mtp|embed_tokens|embeddings|wte|norm|lm_head|shared/.test(name),
      );
      expect(model.undescribed?.map(({ name }) => name).sort()).toEqual(rest.sort());
    });
  }

  for (const [family, { config, shapes: all, mtp = 0 }] of Object.entries(made)) {
    it(`loses two experts of ${family} and keeps the others as they are`, async () => {
      const tensors = randomTensors(all);
      await using checkpoint = await loadMade(config, tensors);
      const layers = moeLayers(checkpoint.model);
      const plan = createPlan(
        checkpoint.model,
        layers.map(({ index }) => ({ layer: index, experts: index === 0 ? [3, 1] : [0, 2] })),
      );
      const target = memoryTarget();
      await applyPlan(checkpoint, plan, target);
      await using smaller = await loadModel(memoryFolder(target.files));
      expect(smaller.edits.map((set) => set.experts)).toEqual(checkpoint.edits.map(() => 2));
      expect(smaller.mtpLayers).toBe(checkpoint.mtpLayers);
      expect(smaller.edits).toHaveLength(layers.length + mtp);
      for (const [position, { index, feedForward }] of moeLayers(smaller.model).entries()) {
        const before = layers[position]!.feedForward;
        for (const [slot, expert] of (index === 0 ? [3, 1] : [0, 2]).entries()) {
          for (const role of ["gate", "up", "down"] as const) {
            const [mine, theirs] = [feedForward.experts[slot]?.[role], before.experts[expert]?.[role]];
            if (!mine || !theirs) continue;
            expect([...(await smaller.weights.read(mine))]).toEqual([
              ...(await checkpoint.weights.read(theirs)),
            ]);
          }
        }
      }
      const [rest, kept] = [checkpoint.model.undescribed, smaller.model.undescribed];
      expect(kept?.map(({ name }) => name)).toEqual(rest?.map(({ name }) => name));
    });
  }

  it("gives DBRX's experts as rows of stacks, down transposed", async () => {
    const { config, shapes: all } = made.dbrx!;
    const tensors = randomTensors(all);
    await using checkpoint = await loadMade(config, tensors);
    const { gate, up, down } = moeLayers(checkpoint.model)[1]!.feedForward.experts[2] as Required<MlpSpec>;
    const rows = (name: string) =>
      floats(tensors.get(`transformer.blocks.1.ffn.experts.mlp.${name}`)!).slice(
        2 * width * hidden,
        3 * width * hidden,
      );
    expect([...(await checkpoint.weights.read(gate))]).toEqual([...rows("w1")]);
    expect([...(await checkpoint.weights.read(up))]).toEqual([...rows("v1")]);
    expect([...(await checkpoint.weights.read(down))]).toEqual([...transposed(rows("w2"), width, hidden)]);
    expect(checkpoint.edits[0]!.stacked.map(({ rowsPerExpert }) => rowsPerExpert)).toEqual([
      width,
      width,
      width,
    ]);
    expect(checkpoint.detected.counts).toMatchObject({
      experts: ["ffn_config.moe_num_experts"],
      topK: ["ffn_config.moe_top_k"],
    });
  });

  it("describes Nemotron-H's experts, which have no gate and their own input", async () => {
    const { config, shapes: all } = made.nemotron_h!;
    await using checkpoint = await loadMade(config, randomTensors(all));
    const { feedForward } = moeLayers(checkpoint.model)[0]!;
    expect(feedForward.experts[0]).toMatchObject({
      up: { shape: [width, 5] },
      activation: { kind: "relu2" },
    });
    expect(feedForward.experts[0]).not.toHaveProperty("gate");
    expect(feedForward.shared).toMatchObject({ up: { shape: [10, hidden] } });
    expect(checkpoint.edits.at(-1)).toMatchObject({ layer: 1, label: "multi-token-prediction layer 1" });
  });

  it("takes every prefix that multimodal checkpoints use", async () => {
    const config = { model_type: "around", text_config: { ...qwenConfig, model_type: "qwen3_next" } };
    for (const body of ["language_model.model.", "model.language_model."]) {
      const all = shapes(`${body}layers.`, (l) => qwenLayer(`${body}layers.${l}.mlp`), qwenEnds(body)).map(
        ([name, shape]) =>
          [
            name === "lm_head.weight" && body.startsWith("language") ? `language_model.${name}` : name,
            shape,
          ] as [string, number[]],
      );
      await using checkpoint = await loadMade(config, randomTensors(all));
      expect(checkpoint.detected).toMatchObject({
        wrapper: "around",
        counts: { experts: ["text_config.num_experts"] },
      });
      expect(checkpoint.edits[1]?.rows[0]?.tensor.name).toBe(`${body}layers.1.mlp.gate.weight`);
    }
  });

  it("names a language model that it does not know", async () => {
    const config = { model_type: "around", text_config: { model_type: "dense_text" } };
    await expectError(
      loadMade(config, randomTensors([["x", [1]]])),
      "COPPICE_FAMILY_UNKNOWN",
      '"around"',
      '"dense_text"',
    );
  });
});
