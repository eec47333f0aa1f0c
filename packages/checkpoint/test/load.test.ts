import { type LoadedCheckpoint, loadModel, memoryFolder } from "@coppice/checkpoint";
import { openFolder } from "@coppice/checkpoint/node";
import { type MlpSpec, moeLayers, type TensorRef } from "@coppice/core";
import { describe, expect, it } from "vitest";
import {
  bytesOf,
  editConfig,
  editTensors,
  expectError,
  type Files,
  fixtures,
  load,
  poison,
  tensorsOf,
  tinyFiles,
} from "./helpers.js";

describe("loadModel", () => {
  it("describes the Mixtral fixture", async () => {
    await using checkpoint = await loadModel(await openFolder(`${fixtures}mixtral`));
    const { family, hiddenSize, vocabSize, contextLength, layers, tied, endTokens, beginToken } =
      checkpoint.model;
    expect({ family, hiddenSize, vocabSize, contextLength, tied, endTokens, beginToken }).toEqual({
      family: "mixtral",
      hiddenSize: 64,
      vocabSize: 256,
      contextLength: 512,
      tied: false,
      endTokens: [2],
      beginToken: 1,
    });
    expect(layers).toHaveLength(3);
    const { attention, feedForward } = layers[1]!;
    expect(attention).toMatchObject({ heads: 4, kvHeads: 2, headDim: 16, scale: 0.25 });
    expect(attention).toMatchObject({ rotary: { theta: 1e6, dimensions: 16, interleaved: false } });
    expect("slidingWindow" in attention || "queryNorm" in attention).toBe(false);
    if (feedForward.kind !== "moe") throw new Error("no experts");
    expect(feedForward.router).toMatchObject({ order: "softmax-topk", normalize: { power: 1 }, topK: 2 });
    expect(feedForward.experts).toHaveLength(8);
    const { gate, up, down, width } = feedForward.experts[5] as Required<MlpSpec>;
    const base = "model.layers.1.block_sparse_moe.experts.5";
    expect([gate.name, up.name, down.name, width]).toEqual([
      `${base}.w1.weight`,
      `${base}.w3.weight`,
      `${base}.w2.weight`,
      32,
    ]);
  });

  it("describes the Qwen3-MoE fixture, whose config has rope_parameters and num_local_experts", async () => {
    await using checkpoint = await loadModel(await openFolder(`${fixtures}qwen3_moe`));
    const { attention, feedForward } = checkpoint.model.layers[0]!;
    expect(attention).toMatchObject({
      queryNorm: { kind: "rms", over: "head", weight: { shape: [16] } },
      keyNorm: { weight: { name: "model.layers.0.self_attn.k_norm.weight" } },
      rotary: { theta: 10_000 },
    });
    expect(feedForward.kind === "moe" && feedForward.experts).toHaveLength(8);
  });

  it("reads weights as an independent parser does, lazily", async () => {
    const files = await tinyFiles();
    const reads: string[] = [];
    const folder = memoryFolder(files);
    await using checkpoint = await load({
      ...folder,
      open: async (name) => {
        const source = await folder.open(name);
        return {
          ...source,
          read: (offset, into) => {
            reads.push(`${name}:${into.length}`);
            return source.read(offset, into);
          },
        };
      },
    });
    const before = reads.length;
    const ref = checkpoint.tensors.get("model.layers.1.mlp.experts.2.up_proj.weight") as
      | TensorRef
      | undefined;
    expect(ref).toBeUndefined();
    const up = moeLayers(checkpoint.model)[1]!.feedForward.experts[2]!.up;
    const values = await checkpoint.weights.read(up);
    expect(reads.length).toBe(before + 1);
    const stored = (await tensorsOf(files)).get(up.name)!;
    const words = new Uint16Array(stored.bytes.buffer);
    expect([...values]).toEqual(
      [...words].map((word) => new Float32Array(Uint32Array.of(word << 16).buffer)[0]),
    );
    const shared = new Float32Array(new SharedArrayBuffer(values.byteLength));
    expect(await checkpoint.weights.read(up, { into: shared })).toBe(shared);
    expect([...shared]).toEqual([...values]);
  });

  it("reads tensors larger than one chunk", async () => {
    const files = await tinyFiles({ vocabSize: 100_001 });
    await using checkpoint = await load(files);
    const values = await checkpoint.weights.read(checkpoint.model.embedding);
    const words = new Uint16Array((await tensorsOf(files)).get("model.embed_tokens.weight")!.bytes.buffer);
    const wrong = words.findIndex(
      (word, i) => values[i] !== new Float32Array(Uint32Array.of(word << 16).buffer)[0],
    );
    expect(wrong).toBe(-1);
  });

  it("gives the same model for the fused layout of transformers 5", async () => {
    for (const family of ["mixtral", "qwen3_moe"] as const) {
      const files = await tinyFiles({ family, fused: true });
      await using checkpoint = await load(files);
      const { gate, up, down } = moeLayers(checkpoint.model)[1]!.feedForward.experts[3] as Required<MlpSpec>;
      const stack = (await tensorsOf(files)).get("model.layers.1.mlp.experts.gate_up_proj")!;
      expect(stack.shape).toEqual([4, 12, 8]);
      // Expert 3 has rows 36 to 47 of 8 values: first its 6 gate rows, then its 6 up rows.
      const words = new Uint16Array(stack.bytes.buffer);
      const widen = (word: number) => new Float32Array(Uint32Array.of(word << 16).buffer)[0];
      expect([...(await checkpoint.weights.read(gate))]).toEqual([...words.slice(36 * 8, 42 * 8)].map(widen));
      expect([...(await checkpoint.weights.read(up))]).toEqual([...words.slice(42 * 8, 48 * 8)].map(widen));
      expect(down.shape).toEqual([8, 6]);
    }
  });

  it("finds the family by tensor names when the config has no model_type", async () => {
    for (const family of ["mixtral", "qwen3_moe"] as const) {
      for (const fused of [false, true]) {
        const files = editConfig(await tinyFiles({ family, fused }), { model_type: undefined });
        expect((await load(files)).model.family).toBe(family);
      }
    }
  });

  it("carries tensors of foreign names along, __proto__ too", async () => {
    const extra = { dtype: "U8", shape: [3], bytes: Uint8Array.of(1, 2, 3) } as const;
    const files = await editTensors(await tinyFiles(), (tensors) => tensors.set("__proto__", extra));
    const { tensors, weights } = await load(files);
    expect([...(await weights.read(tensors.get("__proto__")!))]).toEqual([1, 2, 3]);
    expect(({} as { dtype?: unknown }).dtype).toBeUndefined();
  });

  it("closes every file and the folder, also when loading fails", async () => {
    const count = async (files: Files) => {
      let open = 0;
      let peak = 0;
      let closed = false;
      const folder = memoryFolder(files);
      const counted = {
        ...folder,
        open: async (name: string) => {
          const source = await folder.open(name);
          peak = Math.max(peak, ++open);
          return { ...source, close: async () => void open-- };
        },
        close: async () => {
          closed = true;
        },
      };
      await load(counted).then(
        (checkpoint: LoadedCheckpoint) => checkpoint.close(),
        () => {},
      );
      expect(peak).toBeLessThan(50);
      return { open, closed };
    };
    const many = await tinyFiles({ layers: 8, experts: 8, maxShardBytes: 300 });
    expect(many.size).toBeGreaterThan(80);
    expect(await count(many)).toEqual({ open: 0, closed: true });
    expect(await count(editConfig(many, { hidden_size: 9 }))).toEqual({ open: 0, closed: true });
  });

  it("stops when its signal is aborted", async () => {
    const signal = AbortSignal.abort();
    const files = await tinyFiles();
    await expectError(loadModel(memoryFolder(files), { signal }), "COPPICE_ABORTED");
    const { weights, model } = await load(files);
    await expectError(weights.read(model.embedding, { signal }), "COPPICE_ABORTED");
  });
});

describe("fingerprint", () => {
  const fingerprint = async (files: Files) => (await load(files)).model.fingerprint;

  it("depends on weights and settings, not on files", async () => {
    const files = await tinyFiles();
    const original = await fingerprint(files);
    expect(original).toMatch(/^[0-9a-f]{64}$/);
    const same: [string, Files][] = [
      ["shards", await tinyFiles({ maxShardBytes: 1000 })],
      ["spelling", editConfig(files, { transformers_version: "9", _name_or_path: "x" })],
      ["other files", new Map(files).set("tokenizer.json", bytesOf("{}"))],
      ["end tokens", editConfig(files, { eos_token_id: 3 })],
    ];
    for (const [name, changed] of same) expect([name, await fingerprint(changed)]).toEqual([name, original]);
    const other: [string, Files][] = [
      ["seed", await tinyFiles({ seed: 8 })],
      ["dtype", await tinyFiles({ dtype: "F32" })],
      ["top-k", editConfig(files, { num_experts_per_tok: 1 })],
      ["theta", editConfig(files, { rope_theta: 500 })],
      ["epsilon", editConfig(files, { rms_norm_eps: 1e-6 })],
      ["window", editConfig(files, { sliding_window: 4 })],
      ["the first router", await poison(files, "model.layers.0.block_sparse_moe.gate.weight", 9, 0)],
      ["a router", await poison(files, "model.layers.1.block_sparse_moe.gate.weight", 9, 0)],
      ["an expert", await poison(files, "model.layers.1.block_sparse_moe.experts.3.w1.weight", 1, 0)],
      ["a norm", await poison(files, "model.norm.weight", 7, 0)],
    ];
    for (const [name, changed] of other)
      expect([name, await fingerprint(changed)]).not.toEqual([name, original]);
  });
});
