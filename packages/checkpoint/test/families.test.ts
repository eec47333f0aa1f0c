import { readFile } from "node:fs/promises";
import {
  families,
  type LoadedCheckpoint,
  loadModel,
  memoryFolder,
  parseSafetensors,
} from "@coppice/checkpoint";
import { openFolder } from "@coppice/checkpoint/node";
import { type MlpSpec, moeLayers } from "@coppice/core";
import { describe, expect, it } from "vitest";
import { fixtures } from "./helpers.js";
import { concatenate, f32, floats, madeFiles, type Tensors, transposed } from "./made-checkpoint.js";

/** What the papers and the reference implementation say of each family, as its fixture has it. */
const facts: Record<
  string,
  { attention: object; router: object; model?: object; shared?: object; layers?: string }
> = {
  mixtral: {
    attention: { kind: "gqa", scale: 0.25, rotary: { theta: 1e6, interleaved: false } },
    router: { order: "softmax-topk", normalize: { power: 1 } },
  },
  qwen2_moe: {
    attention: { query: { bias: { shape: [64] } }, value: { bias: { shape: [32] } } },
    router: { order: "softmax-topk" },
    shared: { shared: { width: 64 }, sharedGate: { shape: [1, 64] } },
    layers: "dense moe moe",
  },
  qwen3_moe: {
    attention: { queryNorm: { over: "head", weight: { shape: [16] } } },
    router: { order: "softmax-topk", normalize: { power: 1 } },
  },
  olmoe: {
    attention: { queryNorm: { over: "projection", weight: { shape: [64] } } },
    router: { order: "softmax-topk" },
  },
  deepseek_v2: {
    attention: {
      kind: "mla",
      nopeDim: 16,
      valueDim: 16,
      rank: 32,
      scale: 24 ** -0.5,
      kvNorm: { epsilon: 1e-6 },
      queryDown: { weight: { shape: [24, 64] } },
      rotary: { dimensions: 8, interleaved: true },
    },
    router: { order: "softmax-topk", scale: 1.5, groups: { count: 4, keep: 2, score: "max" } },
    shared: { shared: { width: 64 } },
    layers: "dense moe moe",
  },
  deepseek_v3: {
    attention: { kind: "mla", queryNorm: { epsilon: 1e-6 } },
    router: {
      order: "sigmoid-topk",
      normalize: { power: 1, epsilon: 1e-20 },
      scale: 2.5,
      groups: { count: 4, keep: 2, score: "top2" },
      correction: { shape: [8] },
    },
    shared: { shared: { width: 32 } },
    layers: "dense moe moe",
  },
  phimoe: {
    attention: { output: { bias: { shape: [64] } } },
    router: { order: "sparsemixer", jitter: 0.01 },
    model: { finalNorm: { kind: "layer", bias: { shape: [64] } }, headBias: { shape: [256] } },
  },
  granitemoe: {
    attention: { scale: 0.08 },
    router: { order: "topk-softmax" },
    model: { embeddingScale: 6, residualScale: 0.5, logitScale: 0.25 },
  },
  gpt_oss: {
    attention: {
      sinks: { shape: [4] },
      slidingWindow: 8,
      rotary: {
        scaling: { kind: "yarn", factor: 32, truncate: false, attentionFactor: 0.1 * Math.log(32) + 1 },
      },
    },
    router: { order: "topk-softmax", bias: { shape: [8] } },
  },
  glm4_moe: {
    attention: { headDim: 16, rotary: { dimensions: 8 }, key: { bias: { shape: [32] } } },
    router: { order: "sigmoid-topk", normalize: { epsilon: 1e-20 } },
    shared: { shared: { width: 32 } },
    layers: "dense moe moe",
  },
  ernie4_5_moe: {
    attention: { rotary: { interleaved: true, theta: 500_000 } },
    router: { order: "softmax-topk", normalize: { power: 1, least: 1e-12 }, correction: { shape: [8] } },
    shared: { shared: { width: 32 } },
    layers: "dense moe moe",
  },
  minimax_m2: {
    attention: { keyNorm: { over: "projection", weight: { shape: [32] } } },
    router: { order: "sigmoid-topk", normalize: { power: 1 }, correction: { shape: [8] } },
  },
  llama4_text: {
    attention: { queryNorm: { over: "head", kind: "rms" }, normAfterRotary: true, chunk: 8192 },
    router: { order: "topk-sigmoid", scalesInput: true },
    shared: { shared: { width: 32 } },
  },
  hunyuan_v1_moe: {
    attention: { queryNorm: { over: "head", weight: { shape: [16] } }, normAfterRotary: true },
    router: { order: "softmax-topk", normalize: { power: 1 } },
    shared: { shared: { width: 32 } },
  },
};

/** Settings that are absent, where a default would be easy to get wrong. */
const absent: Record<string, readonly string[]> = {
  qwen2_moe: ["normalize"],
  olmoe: ["normalize"],
  deepseek_v2: ["normalize", "correction"],
  glm4_moe: ["groups", "scale"],
  minimax_m2: ["groups", "scale"],
  llama4_text: ["normalize", "bias"],
};

const open = async (family: string) => loadModel(await openFolder(`${fixtures}${family}`));

describe("families", () => {
  it("are those that the fixtures show, and those that are edited only", () => {
    const executed = families.filter(({ editOnly }) => editOnly === undefined).map(({ name }) => name);
    expect(executed.sort()).toEqual(Object.keys(facts).sort());
  });

  for (const [family, { attention, router, model, shared, layers }] of Object.entries(facts)) {
    it(`describes the ${family} fixture`, async () => {
      await using checkpoint = await open(family);
      const first = moeLayers(checkpoint.model)[0]!;
      expect(first.attention).toMatchObject(attention);
      expect(first.feedForward.router).toMatchObject({ topK: family === "llama4_text" ? 1 : 2, ...router });
      for (const key of absent[family] ?? []) expect(first.feedForward.router).not.toHaveProperty(key);
      if (shared) expect(first.feedForward).toMatchObject(shared);
      else expect(first.feedForward).not.toHaveProperty("shared");
      if (model) expect(checkpoint.model).toMatchObject(model);
      const kinds = checkpoint.model.layers.map(({ feedForward }) => feedForward.kind).join(" ");
      expect(kinds).toBe(layers ?? "moe moe moe");
      expect(checkpoint.model.editOnly).toBeUndefined();
      expect(checkpoint.model.undescribed).toBeUndefined();
    });
  }

  it("are told apart by their tensors where config.json has no model_type", async () => {
    for (const family of Object.keys(facts)) {
      const tensors = await fixtureTensors(family);
      const config = JSON.parse(await readFile(`${fixtures}${family}/config.json`, "utf8")) as object;
      const files = madeFiles({ ...config, model_type: undefined }, tensors);
      await using checkpoint = await loadModel(memoryFolder(files));
      expect(checkpoint.model.family).toBe(family);
    }
  });

  it("may have no shared experts, whose matrices are then empty", async () => {
    const tensors = await fixtureTensors("deepseek_v3");
    const config = JSON.parse(await readFile(`${fixtures}deepseek_v3/config.json`, "utf8")) as object;
    for (const name of [...tensors.keys()]) {
      if (name.includes("shared_experts"))
        tensors.set(name, f32(name.includes("down") ? [64, 0] : [0, 64], []));
    }
    await using checkpoint = await loadModel(
      memoryFolder(madeFiles({ ...config, n_shared_experts: 0 }, tensors)),
    );
    expect(moeLayers(checkpoint.model)[0]!.feedForward).not.toHaveProperty("shared");
  });

  it("lists every tensor of experts and routers for surgery, once", async () => {
    for (const family of Object.keys(facts)) {
      await using checkpoint = await open(family);
      const { edits, tensors } = checkpoint;
      const listed = edits.flatMap(({ rows, separate, stacked }) =>
        [...rows, ...separate, ...stacked].map(({ tensor }) => tensor.name),
      );
      expect(new Set(listed).size).toBe(listed.length);
      const expected = [...tensors.keys()].filter((name) =>
        /\.experts\.|put_linear|router|\.gate\.|block_sparse_moe\.gate|correction/.test(name),
      );
      expect(listed.sort()).toEqual(expected.sort());
      for (const { rows, experts } of edits) {
        for (const { tensor, axis } of rows) expect(tensor.shape[axis]).toBe(experts);
      }
    }
  });

  it("gives paths of the counts that config.json states", async () => {
    const counts = async (family: string) => {
      await using checkpoint = await open(family);
      return checkpoint.detected.counts;
    };
    expect(await counts("deepseek_v3")).toEqual({
      experts: ["n_routed_experts"],
      topK: ["num_experts_per_tok"],
      groups: ["n_group"],
      groupsKept: ["topk_group"],
      capacity: [],
    });
    expect(await counts("ernie4_5_moe")).toMatchObject({ experts: ["moe_num_experts"], topK: ["moe_k"] });
  });
});

describe("the other layout of each family", () => {
  const separate = Object.keys(facts).filter(
    (family) => !["granitemoe", "gpt_oss", "llama4_text"].includes(family),
  );
  for (const family of separate) {
    it(`gives the same ${family} experts when transformers 5 has fused and renamed them`, async () => {
      const tensors = await fixtureTensors(family);
      const config = JSON.parse(await readFile(`${fixtures}${family}/config.json`, "utf8")) as object;
      const fused = fuse(tensors, family);
      await using one = await open(family);
      await using other = await loadModel(memoryFolder(madeFiles(config, fused)));
      expect(other.detected.layout.kind).toBe("fused");
      await expectSameExperts(one, other);
      expect(
        other.edits.every(({ stacked, separate }) => stacked.length === 2 && separate.length === 0),
      ).toBe(true);
    });
  }

  it("gives the same Granite experts under the names of transformers 5", async () => {
    const tensors = new Map(
      [...(await fixtureTensors("granitemoe"))].map(([name, tensor]) => [
        name
          .replace("input_linear.weight", "experts.gate_up_proj")
          .replace("output_linear.weight", "experts.down_proj")
          .replace("router.layer.weight", "router.weight"),
        tensor,
      ]),
    );
    await using one = await open("granitemoe");
    await using other = await loadModel(memoryFolder(madeFiles(one.config, tensors)));
    await expectSameExperts(one, other);
  });

  it("gives the same Llama 4 experts when each is on its own", async () => {
    const tensors = await fixtureTensors("llama4_text");
    const [hidden, width] = [64, 32];
    for (const [name, tensor] of [...tensors]) {
      const stack = /^(.*\.experts)\.(gate_up|down)_proj$/.exec(name);
      if (!stack) continue;
      tensors.delete(name);
      const values = floats(tensor);
      for (let expert = 0; expert < 8; expert++) {
        const size = values.length / 8;
        const own = values.slice(expert * size, (expert + 1) * size);
        const base = `${stack[1]}.${expert}`;
        if (stack[2] === "down") {
          tensors.set(`${base}.down_proj.weight`, f32([hidden, width], transposed(own, width, hidden)));
          continue;
        }
        const both = transposed(own, hidden, 2 * width);
        tensors.set(`${base}.gate_proj.weight`, f32([width, hidden], both.slice(0, width * hidden)));
        tensors.set(`${base}.up_proj.weight`, f32([width, hidden], both.slice(width * hidden)));
      }
    }
    await using one = await open("llama4_text");
    await using other = await loadModel(memoryFolder(madeFiles(one.config, tensors)));
    expect(other.detected.layout.kind).toBe("separate");
    await expectSameExperts(one, other);
  });

  it("runs the language model of Llama 4's multimodal checkpoints", async () => {
    const tensors: Tensors = new Map([["vision_model.class_embedding", f32([2], [1, 2])]]);
    for (const [name, tensor] of await fixtureTensors("llama4_text"))
      tensors.set(`language_model.${name}`, tensor);
    await using one = await open("llama4_text");
    const config = { model_type: "llama4", text_config: one.config, vision_config: {} };
    await using other = await loadModel(memoryFolder(madeFiles(config, tensors)));
    expect(other.detected).toMatchObject({
      wrapper: "llama4",
      counts: { experts: ["text_config.num_local_experts"] },
    });
    expect(other.model.editOnly).toBeUndefined();
    expect(other.model.head.name).toBe("language_model.lm_head.weight");
    expect(other.model.undescribed?.map(({ name }) => name)).toEqual(["vision_model.class_embedding"]);
    await expectSameExperts(one, other);
  });

  it("reads fused Qwen3 experts that lie transposed, within a multimodal model", async () => {
    const fused = fuse(await fixtureTensors("qwen3_moe"), "qwen3_moe");
    const tensors: Tensors = new Map([["model.visual.patch_embed.weight", f32([2], [1, 2])]]);
    for (const [name, tensor] of fused) {
      const [experts, rows, columns] = tensor.shape as [number, number, number];
      const isStack = /experts\.\w+_proj$/.test(name);
      const values = isStack
        ? concatenate(
            Array.from({ length: experts }, (_, expert) =>
              transposed(
                floats(tensor).slice(expert * rows * columns, (expert + 1) * rows * columns),
                rows,
                columns,
              ),
            ),
          )
        : undefined;
      const renamed = name.replace(/^model\./, "model.language_model.");
      tensors.set(renamed, values ? f32([experts, columns, rows], values) : tensor);
    }
    await using one = await open("qwen3_moe");
    const config = {
      model_type: "qwen3_vl_moe",
      tie_word_embeddings: false,
      // As transformers 5 writes them: the default of a class that has no head.
      text_config: { ...one.config, model_type: "qwen3_vl_moe_text", tie_word_embeddings: true },
      vision_config: { model_type: "qwen3_vl_moe" },
    };
    await using other = await loadModel(memoryFolder(madeFiles(config, tensors)));
    expect(other.detected).toMatchObject({
      wrapper: "qwen3_vl_moe",
      counts: { experts: ["text_config.num_local_experts"], topK: ["text_config.num_experts_per_tok"] },
    });
    expect(other.model).toMatchObject({ tied: false, head: { name: "lm_head.weight" } });
    expect(other.model.editOnly).toBeUndefined();
    expect(other.model.undescribed?.map(({ name }) => name)).toEqual(["model.visual.patch_embed.weight"]);
    await expectSameExperts(one, other);
  });
});

async function fixtureTensors(family: string): Promise<Tensors> {
  const bytes = await readFile(`${fixtures}${family}/model.safetensors`);
  return new Map((await parseSafetensors(new Uint8Array(bytes), family)).tensors);
}

/** Stacks experts as `torch.stack` and `torch.cat` of transformers 5 would, gate rows first, and renames what it does. */
function fuse(tensors: Tensors, family: string): Tensors {
  const fused: Tensors = new Map();
  const stacks = new Map<
    string,
    { gate: Float32Array[]; up: Float32Array[]; down: Float32Array[]; shape: number[] }
  >();
  const roles: Record<string, "gate" | "up" | "down"> = { w1: "gate", w3: "up", w2: "down" };
  for (const [name, tensor] of tensors) {
    const match = /^(.*)\.experts\.(\d+)\.(\w+?)(?:_proj)?\.weight$/.exec(name);
    if (!match) {
      const renamed = name
        .replace("block_sparse_moe.gate", family === "phimoe" ? "mlp.router" : "mlp.gate")
        .replace("block_sparse_moe", "mlp")
        .replace("mlp.moe_statics", "mlp.gate.moe_statics");
      fused.set(renamed, tensor);
      continue;
    }
    const block = `${match[1]}.experts`.replace("block_sparse_moe", "mlp");
    const stack = stacks.get(block) ?? { gate: [], up: [], down: [], shape: [] };
    stacks.set(block, stack);
    const role = roles[match[3] as string] ?? (match[3] as "gate" | "up" | "down");
    stack[role][Number(match[2])] = floats(tensor);
    if (role === "gate") stack.shape = [...tensor.shape];
  }
  for (const [block, { gate, up, down, shape }] of stacks) {
    const [width, hidden] = shape as [number, number];
    const both = gate.map((part, expert) => concatenate([part, up[expert] as Float32Array]));
    fused.set(`${block}.gate_up_proj`, f32([gate.length, 2 * width, hidden], concatenate(both)));
    fused.set(`${block}.down_proj`, f32([gate.length, hidden, width], concatenate(down)));
  }
  return fused;
}

async function expectSameExperts(one: LoadedCheckpoint, other: LoadedCheckpoint): Promise<void> {
  const layers = moeLayers(one.model);
  for (const [position, layer] of moeLayers(other.model).entries()) {
    const same = layers[position]!.feedForward;
    for (const [expert, mlp] of layer.feedForward.experts.entries()) {
      for (const role of ["gate", "up", "down"] as const) {
        const [mine, theirs] = [mlp as Required<MlpSpec>, same.experts[expert] as Required<MlpSpec>];
        expect(mine[role].shape).toEqual(theirs[role].shape);
        expect([...(await other.weights.read(mine[role]))]).toEqual([
          ...(await one.weights.read(theirs[role])),
        ]);
      }
    }
    for (const role of ["weight", "correction"] as const) {
      const [mine, theirs] = [layer.feedForward.router[role], same.router[role]];
      expect(mine?.shape).toEqual(theirs?.shape);
      if (mine && theirs) {
        expect([...(await other.weights.read(mine))]).toEqual([...(await one.weights.read(theirs))]);
      }
    }
  }
}
