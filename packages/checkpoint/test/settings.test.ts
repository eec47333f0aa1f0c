import { type GroupedQueryAttentionSpec, type MoeModel, moeLayers } from "@coppice/core";
import { describe, expect, it } from "vitest";
import { bytesOf, editConfig, editTensors, expectError, load, tinyFiles } from "./helpers.js";

/** The attention of the first layer. */
const grouped = (model: MoeModel) => model.layers[0]!.attention as GroupedQueryAttentionSpec;

describe("settings", () => {
  const settings = async (changes: Record<string, unknown>, family: "mixtral" | "qwen3_moe" = "qwen3_moe") =>
    (await load(editConfig(await tinyFiles({ family }), changes))).model;

  it("takes the defaults of the stock implementation", async () => {
    const absent = { rms_norm_eps: undefined, rope_theta: undefined, max_position_embeddings: undefined };
    const mixtral = await settings(absent, "mixtral");
    expect(mixtral.finalNorm.epsilon).toBe(1e-5);
    expect(grouped(mixtral).rotary?.theta).toBe(1e6);
    expect(mixtral.contextLength).toBe(131_072);
    const qwen = await settings({ ...absent, head_dim: null, norm_topk_prob: undefined });
    expect(qwen.finalNorm.epsilon).toBe(1e-6);
    expect(qwen.layers[0]!.attention).toMatchObject({ headDim: 4, rotary: { theta: 10_000 } });
    expect(moeLayers(qwen)[0]!.feedForward.router.normalize).toBeUndefined();
  });

  it("reads rope_theta from rope_parameters before the top level", async () => {
    const theta = async (changes: Record<string, unknown>) => grouped(await settings(changes)).rotary?.theta;
    expect(await theta({ rope_parameters: { rope_theta: 5e5, rope_type: "default" } })).toBe(5e5);
    expect(await theta({ rope_theta: 123, rope_parameters: { rope_type: "default" } })).toBe(123);
    expect(await theta({ rope_theta: 123, rope_scaling: null })).toBe(123);
  });

  it("honours sliding_window only where the family uses it", async () => {
    const window = async (changes: Record<string, unknown>, family: "mixtral" | "qwen3_moe") =>
      grouped(await settings(changes, family)).slidingWindow;
    expect(await window({ sliding_window: 16 }, "mixtral")).toBe(16);
    expect(await window({ sliding_window: null }, "mixtral")).toBeUndefined();
    expect(await window({ sliding_window: 16, use_sliding_window: false }, "qwen3_moe")).toBeUndefined();
    expect(await window({ sliding_window: 16, use_sliding_window: true }, "qwen3_moe")).toBe(16);
  });

  it("takes the end tokens of generation_config.json, else those of config.json", async () => {
    const end = async (config: unknown, generation?: Record<string, unknown>) => {
      const files = editConfig(await tinyFiles(), { eos_token_id: config });
      if (generation) files.set("generation_config.json", bytesOf(JSON.stringify(generation)));
      return (await load(files)).model.endTokens;
    };
    expect(await end(5)).toEqual([5]);
    expect(await end([5, 6], { eos_token_id: null })).toEqual([5, 6]);
    expect(await end(5, { eos_token_id: [7, 8] })).toEqual([7, 8]);
    expect(await end(null)).toEqual([]);
  });

  it("describes dense layers by decoder_sparse_step and mlp_only_layers", async () => {
    const dense = { dtype: "BF16", shape: [6, 8], bytes: new Uint8Array(96) } as const;
    const files = await editTensors(await tinyFiles({ family: "qwen3_moe", layers: 3 }), (tensors) => {
      for (const name of [...tensors.keys()]) {
        if (/layers\.[02]\.mlp\./.test(name)) tensors.delete(name);
      }
      for (const layer of [0, 2]) {
        const base = `model.layers.${layer}.mlp`;
        tensors.set(`${base}.gate_proj.weight`, dense);
        tensors.set(`${base}.up_proj.weight`, dense);
        tensors.set(`${base}.down_proj.weight`, { ...dense, shape: [8, 6] });
      }
    });
    for (const changes of [{ decoder_sparse_step: 2 }, { mlp_only_layers: [0, 2] }]) {
      const { model } = await load(editConfig(files, changes));
      expect(model.layers.map(({ feedForward }) => feedForward.kind)).toEqual(["dense", "moe", "dense"]);
    }
    await expectError(load(files), "COPPICE_FAMILY_UNSUPPORTED", "model.layers.0.mlp.gate.weight");
  });

  it("takes the embedding as the head when they are tied, unless the files have a head", async () => {
    const files = await tinyFiles({ tied: true });
    const { model } = await load(files);
    expect(model.tied).toBe(true);
    expect(model.head).toBe(model.embedding);
    const own = await editTensors(files, (tensors) =>
      tensors.set("lm_head.weight", tensors.get("model.embed_tokens.weight")!),
    );
    expect((await load(own)).model).toMatchObject({ tied: false, head: { name: "lm_head.weight" } });
    await expectError(
      load(editConfig(files, { tie_word_embeddings: false })),
      "COPPICE_FORMAT_MISSING_TENSOR",
      "lm_head.weight",
      "[12, 8]",
    );
  });

  it("reads attention biases where the config announces them", async () => {
    const bias = (rows: number) =>
      ({ dtype: "BF16", shape: [rows], bytes: new Uint8Array(rows * 2) }) as const;
    const files = await editTensors(await tinyFiles({ family: "qwen3_moe", layers: 1 }), (tensors) => {
      for (const [name, rows] of [
        ["q", 8],
        ["k", 4],
        ["v", 4],
        ["o", 8],
      ] as const) {
        tensors.set(`model.layers.0.self_attn.${name}_proj.bias`, bias(rows));
      }
    });
    const { model } = await load(editConfig(files, { attention_bias: true }));
    expect(grouped(model).key.bias?.shape).toEqual([4]);
    await expectError(load(files), "COPPICE_FAMILY_UNSUPPORTED", "4 tensors", "q_proj.bias");
  });

  const wrong: [Record<string, unknown>, Parameters<typeof expectError>[1], ...string[]][] = [
    [{ hidden_size: undefined }, "COPPICE_FORMAT_CONFIG", "hidden_size"],
    [{ hidden_size: "8" }, "COPPICE_FORMAT_CONFIG", 'hidden_size is "8"', "integer"],
    [{ hidden_size: 16 }, "COPPICE_FORMAT_SHAPE", "[12, 8]", "[12, 16]"],
    [{ num_hidden_layers: 3 }, "COPPICE_FORMAT_MISSING_TENSOR", "model.layers.2."],
    [{ num_hidden_layers: 1 }, "COPPICE_FAMILY_UNSUPPORTED", "model.layers.1."],
    [{ num_hidden_layers: 2 ** 31 - 1 }, "COPPICE_FORMAT_MISSING_TENSOR"],
    [{ num_experts: 5 }, "COPPICE_FORMAT_EXPERTS", "layer 0 has 4 experts", "config.json says 5"],
    [{ num_experts_per_tok: 5 }, "COPPICE_FORMAT_CONFIG", "5", "4"],
    [{ num_experts_per_tok: 0 }, "COPPICE_FORMAT_CONFIG", "num_experts_per_tok is 0"],
    [{ num_key_value_heads: 3 }, "COPPICE_FORMAT_CONFIG", "num_key_value_heads is 3"],
    [{ head_dim: 3 }, "COPPICE_FORMAT_CONFIG", "head_dim is 3", "even"],
    [{ rms_norm_eps: -1 }, "COPPICE_FORMAT_CONFIG", "rms_norm_eps is -1"],
    [{ eos_token_id: "x" }, "COPPICE_FORMAT_CONFIG", "eos_token_id"],
    [{ hidden_act: "gelu" }, "COPPICE_FAMILY_UNSUPPORTED", '"gelu"', "silu"],
    [{ rope_scaling: { type: "su" } }, "COPPICE_FAMILY_UNSUPPORTED", '"su"', "rope_scaling.type"],
    [{ rope_parameters: { rope_type: "llama3" } }, "COPPICE_FORMAT_CONFIG", "rope_parameters has no factor"],
    [{ rope_scaling: { type: "linear", factor: 0 } }, "COPPICE_FORMAT_CONFIG", "factor is 0", "positive"],
    [
      { rope_parameters: { rope_type: "longrope", short_factor: [1], long_factor: [1, 2] } },
      "COPPICE_FORMAT_CONFIG",
      "short_factor is [1]",
      "2 positive numbers",
    ],
    [{ rope_parameters: { full_attention: {} } }, "COPPICE_FAMILY_UNSUPPORTED", "one set for all layers"],
    [{ partial_rotary_factor: 0.5 }, "COPPICE_FAMILY_UNSUPPORTED", "partial_rotary_factor is 0.5"],
    [{ rope_parameters: [1] }, "COPPICE_FORMAT_CONFIG", "rope_parameters"],
    [
      { quantization_config: { quant_method: "fp8", weight_block_size: [128] } },
      "COPPICE_FORMAT_CONFIG",
      "weight_block_size is [128]",
    ],
    [{ mlp_only_layers: [0, 1] }, "COPPICE_FAMILY_UNSUPPORTED", "none of the layers has experts"],
    [{ mlp_only_layers: [1] }, "COPPICE_FORMAT_MISSING_TENSOR", "model.layers.1.mlp.gate_proj.weight"],
    [{ model_type: 5 }, "COPPICE_FORMAT_CONFIG", "model_type is 5"],
    [
      { model_type: "gpt2", architectures: ["GPT2LMHeadModel"] },
      "COPPICE_FAMILY_UNKNOWN",
      '"gpt2"',
      "GPT2LMHeadModel",
      "tensors are such as model.layers.0.mlp.",
      "mixtral, qwen2_moe, qwen3_moe",
    ],
    [{ model_type: "mixtral" }, "COPPICE_FAMILY_UNSUPPORTED", "block_sparse_moe.gate.weight"],
  ];
  for (const [changes, code, ...parts] of wrong) {
    it(`refuses ${JSON.stringify(changes)}`, async () => {
      const files = editConfig(await tinyFiles({ family: "qwen3_moe" }), changes);
      await expectError(load(files), code, ...parts);
    });
  }
});
