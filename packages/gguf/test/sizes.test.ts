import { applyPlan, type CheckpointTarget, loadModel, memoryFolder, memoryTarget } from "@coppice/checkpoint";
import { type SyntheticOptions, writeSyntheticCheckpoint } from "@coppice/checkpoint/node";
import { createPlan } from "@coppice/core";
import { writeGguf } from "@coppice/gguf";
import { describe, expect, it } from "vitest";
import { exportGguf, Files, fixtureFiles } from "./checkpoint.js";
import { slowValues } from "./slow-blocks.js";

const tiny: SyntheticOptions = {
  family: "qwen3_moe",
  layers: 1,
  hiddenSize: 64,
  vocabSize: 256,
  heads: 4,
  kvHeads: 2,
  experts: 4,
  topK: 2,
  expertWidth: 32,
};

async function synthetic(options: Partial<SyntheticOptions>): Promise<Files> {
  const target = memoryTarget();
  await writeSyntheticCheckpoint(target, { ...tiny, ...options });
  const files = await fixtureFiles("qwen3_moe");
  files.files.clear();
  for (const [name, bytes] of target.files) files.files.set(name, bytes);
  const { files: others } = await fixtureFiles("qwen3_moe");
  for (const name of ["tokenizer.json", "tokenizer_config.json"]) {
    files.files.set(name, others.get(name) as Uint8Array);
  }
  return files;
}

describe("matrices larger than what is encoded at a time", () => {
  // An expert has 1.2 million values; fused, it is a view of a stack.
  it.each([false, true])("come out whole, fused %s", async (fused) => {
    const loaded = await (await synthetic({ hiddenSize: 1024, expertWidth: 1184, experts: 2, fused })).load();
    const { tensors } = await exportGguf(loaded, { type: "F16" });
    const [layer] = loaded.model.layers;
    if (layer?.feedForward.kind !== "moe") throw new Error("no experts");
    for (const part of ["gate", "up", "down"] as const) {
      const { data } = tensors.get(`blk.0.ffn_${part}_exps.weight`) as { data: Uint8Array };
      const count = 1024 * 1184;
      for (const [e, expert] of layer.feedForward.experts.entries()) {
        const values = await loaded.weights.read(expert[part] as NonNullable<typeof expert.gate>);
        // BF16 of this size fits F16 but for its last bits; every 4099th value stands for all.
        for (let i = 0; i < count; i += 4099) {
          const [stored] = slowValues(1, data.subarray(2 * (e * count + i)), 1);
          expect(Math.abs((stored as number) - (values[i] as number))).toBeLessThanOrEqual(2 ** -25);
        }
      }
    }
  });

  it("keeps heads together where rows change places", async () => {
    const options = {
      family: "mixtral",
      hiddenSize: 2048,
      heads: 16,
      kvHeads: 2,
      headDim: 128,
      expertWidth: 32,
    };
    const loaded = await (await synthetic(options)).load();
    const { tensors } = await exportGguf(loaded, { type: "F16" });
    const query = await loaded.weights.read(
      loaded.tensors.get("model.layers.0.self_attn.q_proj.weight") as never,
    );
    const { data } = tensors.get("blk.0.attn_q.weight") as { data: Uint8Array };
    for (let row = 0; row < 2048; row += 13) {
      const [head, inHead] = [Math.floor(row / 128), row % 128];
      const source = head * 128 + (inHead % 2) * 64 + Math.floor(inHead / 2);
      const [stored] = slowValues(1, data.subarray(2 * (row * 2048 + 5)), 1);
      expect(stored).toBeCloseTo(query[source * 2048 + 5] as number, 6);
    }
  });
});

describe("pruned models", () => {
  const plan = async (counts: readonly number[], layout: "stock" | "runtime") => {
    const files = await fixtureFiles("mixtral");
    const loaded = await files.load();
    const layers = counts.map((count, layer) => ({
      layer,
      experts: Array.from({ length: count }, (_, e) => e + 1),
    }));
    const target = memoryTarget();
    await applyPlan(loaded, createPlan(loaded.model, layers), target, { layout });
    const pruned = new Files();
    for (const [name, bytes] of target.files) pruned.files.set(name, bytes);
    return pruned.load();
  };

  it("state their number of experts", async () => {
    const { metadata, tensors } = await exportGguf(await plan([5, 5, 5], "stock"));
    expect(metadata["llama.expert_count"]).toBe(5);
    expect(tensors.get("blk.2.ffn_down_exps.weight")?.shape).toEqual([5, 64, 32]);
    expect(tensors.get("blk.2.ffn_gate_inp.weight")?.shape).toEqual([5, 64]);
  });

  it("are refused when layers differ, with both numbers", async () => {
    const exporting = exportGguf(await plan([5, 3, 5], "runtime"));
    await expect(exporting).rejects.toMatchObject({
      code: "COPPICE_EXPORT_UNSUPPORTED",
      message: expect.stringMatching(
        /layer 0 has expert count 5, layer 1 3; llama\.expert_count .* one number/,
      ),
    });
  });
});

describe("layers that the architecture does not have are refused", () => {
  it.each([
    [{ mlp_only_layers: [1], intermediate_size: 64 }, /layer 1 has no experts/],
    [{ attention_bias: true }, /layer 0 has biases of attention/],
  ])("%j", async (config, message) => {
    const loaded = await (await synthetic({ layers: 2, config })).load();
    await expect(exportGguf(loaded)).rejects.toMatchObject({
      code: "COPPICE_EXPORT_UNSUPPORTED",
      message: expect.stringMatching(message),
    });
  });
});

describe("what blocks cannot hold", () => {
  const untouched: CheckpointTarget = {
    label: "none",
    begin: () => Promise.reject(new Error("it was begun")),
  };

  it("are rows that are no whole blocks, refused before anything is written", async () => {
    const loaded = await (await synthetic({ expertWidth: 40 })).load();
    const writing = writeGguf(loaded, untouched, { type: "Q4_0", name: "tiny" });
    await expect(writing).rejects.toMatchObject({
      code: "COPPICE_EXPORT_UNSUPPORTED",
      message:
        "GGUF: rows of blk.0.ffn_down_exps.weight have 40 values, which is no multiple of 32, the block of Q4_0",
    });
    expect((await exportGguf(loaded, { type: "F16" })).tensors.size).toBe(15);
  });

  it.each([
    [Number.NaN, "COPPICE_FORMAT_NAN", /NaN/],
    [70_000, "COPPICE_EXPORT_UNSUPPORTED", /value 70000 of lm_head\.weight exceeds what F16 can hold/],
  ])("are values such as %d, of which nothing stays behind", async (value, code, message) => {
    const files = await synthetic({ dtype: "F32" });
    const name = "model.safetensors";
    const bytes = (files.files.get(name) as Uint8Array).slice();
    await using clean = await loadModel(memoryFolder(files.files));
    const { begin } = clean.tensors.get("lm_head.weight") as { begin: number };
    new DataView(bytes.buffer).setFloat32(begin + 44, value, true);
    files.files.set(name, bytes);
    const target = memoryTarget();
    const writing = writeGguf(await files.load(), target, { type: "F16", name: "tiny" });
    await expect(writing).rejects.toMatchObject({ code, message: expect.stringMatching(message) });
    expect(target.files.size).toBe(0);
  });
});
