import type { LoadedCheckpoint } from "@coppice/checkpoint";
import { memoryTarget } from "@coppice/checkpoint";
import { type GgufFileType, writeGguf } from "@coppice/gguf";
import type { FixtureName } from "@coppice/plugin-kit/node";
import { describe, expect, it } from "vitest";
import { exportGguf, fixtureFiles } from "./checkpoint.js";
import { slowTolerance, slowValues } from "./slow-blocks.js";

const codes = { F16: 1, Q8_0: 8, Q4_0: 2 } as const;

/** Where the values of a tensor come from, by the names of the checkpoint alone. */
function sources(family: string, layer: number, experts: number): [gguf: string, names: string[]][] {
  const base = `model.layers.${layer}`;
  const isMixtral = family === "mixtral";
  const moe = isMixtral ? `${base}.block_sparse_moe` : `${base}.mlp`;
  const parts = isMixtral
    ? { gate: "w1", up: "w3", down: "w2" }
    : { gate: "gate_proj", up: "up_proj", down: "down_proj" };
  const norms = isMixtral ? [] : (["q", "k"] as const);
  return [
    ["attn_norm", [`${base}.input_layernorm`]],
    ["attn_q", [`${base}.self_attn.q_proj`]],
    ["attn_k", [`${base}.self_attn.k_proj`]],
    ["attn_v", [`${base}.self_attn.v_proj`]],
    ["attn_output", [`${base}.self_attn.o_proj`]],
    ...norms.map((part): [string, string[]] => [`attn_${part}_norm`, [`${base}.self_attn.${part}_norm`]]),
    ["ffn_norm", [`${base}.post_attention_layernorm`]],
    ["ffn_gate_inp", [`${moe}.gate`]],
    ...Object.entries(parts).map(([part, name]): [string, string[]] => [
      `ffn_${part}_exps`,
      Array.from({ length: experts }, (_, e) => `${moe}.experts.${e}.${name}`),
    ]),
  ].map(([name, names]) => [`blk.${layer}.${name}.weight`, (names as string[]).map((n) => `${n}.weight`)]);
}

async function readAll({ tensors, weights }: LoadedCheckpoint, names: readonly string[]): Promise<number[]> {
  const all: number[] = [];
  for (const name of names) {
    const ref = tensors.get(name);
    if (!ref) throw new Error(name);
    all.push(...(await weights.read(ref)));
  }
  return all;
}

/** Rows of heads of 16 as the llama architecture wants them: row 2i + j of a head is row j * 8 + i of the checkpoint. */
function forNeighbours(values: readonly number[], columns: number): number[] {
  return values.map((_, at) => {
    const column = at % columns;
    const row = (at - column) / columns;
    const [head, inHead] = [Math.floor(row / 16), row % 16];
    const source = head * 16 + (inHead % 2) * 8 + Math.floor(inHead / 2);
    return values[source * columns + column] as number;
  });
}

describe.each(["mixtral", "qwen3_moe", "olmoe"] as const)("%s", (family) => {
  it.each(["F16", "Q8_0", "Q4_0"] as const)("writes every tensor as %s", async (type) => {
    const loaded = await (await fixtureFiles(family)).load();
    const { tensors, summary, bytes } = await exportGguf(loaded, { type });
    const expected: [string, string[]][] = [
      ["token_embd.weight", ["model.embed_tokens.weight"]],
      ["output.weight", ["lm_head.weight"]],
      ["output_norm.weight", ["model.norm.weight"]],
      ...[0, 1, 2].flatMap((layer) => sources(family, layer, 8)),
    ];
    expect([...tensors.keys()].sort()).toEqual(expected.map(([name]) => name).sort());
    expect(summary).toMatchObject({
      file: `tiny-${type}.gguf`,
      bytes: bytes.length,
      tensors: expected.length,
    });
    for (const [name, names] of expected) {
      const tensor = tensors.get(name);
      const stored = loaded.tensors.get(names[0] as string)?.shape as number[];
      const shape = name.includes("_exps") ? [8, ...stored] : stored;
      const isPlain = /norm|gate_inp/.test(name);
      const code = isPlain ? 0 : type === "Q4_0" && name === "output.weight" ? codes.Q8_0 : codes[type];
      expect(tensor, name).toMatchObject({ type: code, shape });
      let values = await readAll(loaded, names);
      const turns = family === "mixtral" && /attn_[qk]\./.test(name);
      if (turns) values = forNeighbours(values, 64);
      checkValues(name, code, slowValues(code, tensor?.data as Uint8Array, values.length), values);
    }
  });
});

function checkValues(name: string, code: number, actual: readonly number[], values: readonly number[]): void {
  const wrong = values.findIndex((value, i) => {
    const start = i - (i % 32);
    const tolerance = slowTolerance(code, values.slice(start, start + 32), value);
    return !(Math.abs((actual[i] as number) - value) <= tolerance);
  });
  expect(wrong < 0 ? undefined : { name, wrong, is: actual[wrong], was: values[wrong] }).toBeUndefined();
}

describe("metadata", () => {
  it("describes a Mixtral", async () => {
    const loaded = await (await fixtureFiles("mixtral")).load();
    const { metadata } = await exportGguf(loaded, { type: "Q4_0" });
    expect(metadata).toMatchObject({
      version: 3,
      "general.architecture": "llama",
      "general.name": "tiny",
      "general.file_type": 2,
      "general.quantization_version": 2,
      "llama.block_count": 3,
      "llama.context_length": 512,
      "llama.embedding_length": 64,
      "llama.feed_forward_length": 32,
      "llama.attention.head_count": 4,
      "llama.attention.head_count_kv": 2,
      "llama.attention.key_length": 16,
      "llama.attention.value_length": 16,
      "llama.rope.dimension_count": 16,
      "llama.rope.freq_base": 1e6,
      "llama.attention.layer_norm_rms_epsilon": Math.fround(1e-5),
      "llama.expert_count": 8,
      "llama.expert_used_count": 2,
      "llama.vocab_size": 256,
    });
  });

  it("describes a Qwen3-MoE", async () => {
    const loaded = await (await fixtureFiles("qwen3_moe")).load();
    const { metadata } = await exportGguf(loaded, { type: "Q8_0" });
    expect(metadata).toMatchObject({
      "general.architecture": "qwen3moe",
      "general.file_type": 7,
      "qwen3moe.feed_forward_length": 48,
      "qwen3moe.expert_feed_forward_length": 32,
      "qwen3moe.expert_count": 8,
    });
  });

  it("describes YaRN, and a window as the longest context", async () => {
    const files = await fixtureFiles("mixtral");
    files.json("config.json", (config) => {
      config.sliding_window = 100;
      config.rope_parameters = {
        rope_type: "yarn",
        factor: 4,
        rope_theta: 10_000,
        original_max_position_embeddings: 128,
      };
    });
    const { metadata } = await exportGguf(await files.load());
    expect(metadata).toMatchObject({
      "llama.context_length": 100,
      "llama.rope.scaling.type": "yarn",
      "llama.rope.scaling.factor": 4,
      "llama.rope.scaling.original_context_length": 128,
    });
  });
});

describe("tied models", () => {
  const load = async (family: FixtureName) => {
    const files = await fixtureFiles(family);
    return (await files.tied()).load();
  };

  it("leave out the head, whose type the embedding gets", async () => {
    const { tensors } = await exportGguf(await load("mixtral"), { type: "Q4_0" });
    expect(tensors.has("output.weight")).toBe(false);
    expect(tensors.get("token_embd.weight")?.type).toBe(codes.Q8_0);
  });

  it("have it twice where the architecture needs it", async () => {
    const { tensors } = await exportGguf(await load("olmoe"));
    expect(tensors.get("output.weight")?.data).toEqual(tensors.get("token_embd.weight")?.data);
  });
});

describe("what does not fit is refused before anything is written", () => {
  const cases: [string, FixtureName, GgufFileType, (config: Record<string, unknown>) => void, RegExp][] = [
    [
      "gate weights",
      "olmoe",
      "F16",
      (c) => (c.norm_topk_prob = true),
      /layer 0 divides gate weights .* never does/,
    ],
    [
      "gate weights",
      "qwen3_moe",
      "F16",
      (c) => (c.norm_topk_prob = false),
      /layer 0 does not divide .* always does/,
    ],
    ["clipping", "olmoe", "F16", (c) => (c.clip_qkv = 8), /±8/],
    [
      "rotary scaling",
      "mixtral",
      "F16",
      (c) => (c.rope_scaling = { rope_type: "dynamic", factor: 2 }),
      /rotary scaling dynamic .* expected linear or yarn/,
    ],
    [
      "YaRN with another magnitude",
      "mixtral",
      "F16",
      (c) => (c.rope_scaling = { rope_type: "yarn", factor: 2, attention_factor: 1 }),
      /attention_factor 1; .* 1\.069/,
    ],
    [
      "YaRN with another ramp",
      "qwen3_moe",
      "F16",
      (c) => (c.rope_scaling = { rope_type: "yarn", factor: 2, beta_fast: 24 }),
      /beta_fast 24; for the format it is 32/,
    ],
  ];
  it.each(cases)("%s of %s", async (_, family, type, edit, message) => {
    const loaded = await (await fixtureFiles(family)).json("config.json", edit).load();
    await expectRefusal(loaded, type, message);
  });

  it("families that have no architecture", async () => {
    const loaded = await (await fixtureFiles("qwen2_moe")).load();
    await expectRefusal(
      loaded,
      "F16",
      /qwen2_moe has no GGUF output; expected one of mixtral, qwen3_moe, olmoe/,
    );
  });
});

async function expectRefusal(loaded: LoadedCheckpoint, type: GgufFileType, message: RegExp): Promise<void> {
  const target = { label: "none", begin: () => Promise.reject(new Error("it was begun")) };
  const writing = writeGguf(loaded, target, { type, name: "tiny" });
  await expect(writing).rejects.toMatchObject({
    code: "COPPICE_EXPORT_UNSUPPORTED",
    message: expect.stringMatching(message),
  });
}

it("leaves nothing behind when it stops", async () => {
  const loaded = await (await fixtureFiles("mixtral")).load();
  const target = memoryTarget();
  const signal = AbortSignal.abort();
  const writing = writeGguf(loaded, target, { type: "F16", name: "tiny", signal });
  await expect(writing).rejects.toMatchObject({ code: "COPPICE_ABORTED" });
  expect(target.files.size).toBe(0);
});
