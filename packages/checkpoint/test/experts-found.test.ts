import { applyPlan, loadModel, memoryFolder, memoryTarget, type TensorBytes } from "@coppice/checkpoint";
import { createPlan, type TensorRef } from "@coppice/core";
import { describe, expect, it } from "vitest";
import { expectError } from "./helpers.js";
import { f32, fixture, loadMade, type Tensors } from "./made-checkpoint.js";

const zeros = (shape: number[]) =>
  f32(shape, new Float32Array(shape.reduce((product, size) => product * size, 1)));

/** Renames what matches, from a copy of the tensors. */
function copyLayer(tensors: Tensors, from: string, to: string): void {
  for (const [name, tensor] of [...tensors]) {
    if (name.startsWith(from)) tensors.set(to + name.slice(from.length), tensor);
  }
}

describe("experts that are found", () => {
  type Fault = [
    what: string,
    family: string,
    damage: (tensors: Tensors, config: Record<string, unknown>) => void,
    code: Parameters<typeof expectError>[1],
    ...parts: string[],
  ];
  const faults: Fault[] = [
    [
      "an expert that is missing",
      "mixtral",
      (tensors) => {
        for (const name of [...tensors.keys()])
          if (name.includes("layers.1.") && name.includes("experts.3.")) tensors.delete(name);
      },
      "COPPICE_FORMAT_EXPERTS",
      "layer 1 has expert 7 and lacks expert 3",
    ],
    [
      "the last expert that is missing",
      "olmoe",
      (tensors) => {
        for (const name of [...tensors.keys()])
          if (name.includes("layers.2.") && name.includes("experts.7.")) tensors.delete(name);
      },
      "COPPICE_FORMAT_EXPERTS",
      "layer 2 has 7 experts",
      "model.layers.2.mlp.gate.weight has 8",
    ],
    [
      "a matrix of one expert that is missing",
      "qwen3_moe",
      (tensors) => tensors.delete("model.layers.0.mlp.experts.4.up_proj.weight"),
      "COPPICE_FORMAT_MISSING_TENSOR",
      "model.layers.0.mlp.experts.4.up_proj.weight",
    ],
    [
      "a router bias that the family does not have beside packed experts",
      "mixtral",
      (tensors) => {
        for (const [name, { shape }] of [...tensors]) {
          if (!name.includes(".experts.")) continue;
          const bytes = new Uint8Array(shape.reduce((product, size) => product * size, 1));
          tensors.set(name, { dtype: "I8", shape, bytes });
        }
        tensors.set("model.layers.1.block_sparse_moe.gate.bias", zeros([8]));
      },
      "COPPICE_FORMAT_QUANTIZED",
      "tensor model.layers.1.block_sparse_moe.gate.bias stands beside experts",
    ],
    [
      "more experts than the config states",
      "deepseek_v3",
      (tensors) => copyLayer(tensors, "model.layers.2.mlp.experts.0.", "model.layers.2.mlp.experts.8."),
      "COPPICE_FORMAT_EXPERTS",
      "layer 2 has 9 experts",
      "config.json says 8",
    ],
    [
      "a router with too few rows",
      "glm4_moe",
      (tensors) => tensors.set("model.layers.1.mlp.gate.weight", zeros([6, 64])),
      "COPPICE_FORMAT_EXPERTS",
      "model.layers.1.mlp.gate.weight has 6",
    ],
    [
      "a correction with too few values",
      "ernie4_5_moe",
      (tensors) => tensors.set("model.layers.2.mlp.moe_statics.e_score_correction_bias", zeros([1, 7])),
      "COPPICE_FORMAT_EXPERTS",
      "e_score_correction_bias has 7",
    ],
    [
      "a correction that is missing",
      "minimax_m2",
      (tensors) => tensors.delete("model.layers.0.block_sparse_moe.e_score_correction_bias"),
      "COPPICE_FORMAT_MISSING_TENSOR",
      "e_score_correction_bias",
    ],
    [
      "a stack of other height",
      "gpt_oss",
      (tensors) => tensors.set("model.layers.0.mlp.experts.down_proj_bias", zeros([7, 64])),
      "COPPICE_FORMAT_EXPERTS",
      "down_proj_bias",
      "[7, 64]",
    ],
    [
      "stacks both plain and in blocks",
      "gpt_oss",
      (tensors) => tensors.set("model.layers.1.mlp.experts.down_proj_blocks", zeros([8, 64, 1, 16])),
      "COPPICE_FORMAT_EXPERTS",
      "layer 1 has its experts twice",
      "down_proj_blocks",
    ],
    [
      "experts on their own beside a stack, in one layer",
      "mixtral",
      (tensors) => tensors.set("model.layers.1.mlp.experts.gate_up_proj", zeros([8, 64, 64])),
      "COPPICE_FORMAT_EXPERTS",
      "block_sparse_moe.experts.0.w2.weight",
      "model.layers.1.mlp.experts.down_proj",
      "one layout",
    ],
    [
      "a layer of stacks after layers of experts on their own",
      "qwen3_moe",
      (tensors) => {
        for (const name of [...tensors.keys()])
          if (name.startsWith("model.layers.2.mlp.experts.")) tensors.delete(name);
        tensors.set("model.layers.2.mlp.experts.gate_up_proj", zeros([8, 64, 64]));
        tensors.set("model.layers.2.mlp.experts.down_proj", zeros([8, 64, 32]));
      },
      "COPPICE_FORMAT_EXPERTS",
      "model.layers.0.mlp.experts.0.down_proj.weight",
      "model.layers.2.mlp.experts.down_proj",
    ],
    [
      "groups that do not divide the experts",
      "deepseek_v3",
      (_, config) => {
        config.n_group = 3;
      },
      "COPPICE_FORMAT_CONFIG",
      "n_group is 3",
      "divides the 8 experts",
    ],
    [
      "groups of one, whose two best are wanted",
      "deepseek_v3",
      (_, config) => {
        config.n_group = 8;
      },
      "COPPICE_FORMAT_CONFIG",
      "groups of at least 2",
    ],
    [
      "more groups than choosing experts could try",
      "deepseek_v3",
      (_, config) => {
        config.n_group = 32;
      },
      "COPPICE_FORMAT_CONFIG",
      "n_group is 32",
      "at most 16",
    ],
    [
      "more groups for a token than there are",
      "deepseek_v3",
      (_, config) => {
        config.topk_group = 5;
      },
      "COPPICE_FORMAT_CONFIG",
      "topk_group is 5",
      "at most the number of groups, 4",
    ],
    [
      "an unknown way to choose",
      "deepseek_v2",
      (_, config) => {
        config.topk_method = "noaux_tc";
      },
      "COPPICE_FAMILY_UNSUPPORTED",
      '"noaux_tc"',
    ],
    [
      "a bias that the config does not announce",
      "hunyuan_v1_moe",
      (tensors) => tensors.set("model.layers.0.self_attn.q_proj.bias", zeros([64])),
      "COPPICE_FAMILY_UNSUPPORTED",
      "q_proj.bias",
    ],
  ];
  for (const [what, family, damage, code, ...parts] of faults) {
    it(`refuses ${what}`, async () => {
      const { tensors, config } = await fixture(family);
      damage(tensors, config);
      await expectError(loadMade(config, tensors), code, ...parts);
    });
  }

  it("may differ in number from layer to layer where the config has lists", async () => {
    const { tensors, config } = await fixture("hunyuan_v1_moe");
    for (const name of [...tensors.keys()]) {
      if (/layers\.1\..*experts\.[567]\./.test(name)) tensors.delete(name);
    }
    const router = tensors.get("model.layers.1.mlp.gate.wg.weight") as TensorBytes;
    tensors.set("model.layers.1.mlp.gate.wg.weight", {
      ...router,
      shape: [5, 64],
      bytes: router.bytes.slice(0, 5 * 64 * 4),
    });
    await using checkpoint = await loadMade(
      { ...config, num_experts: [8, 5, 8], moe_topk: [2, 1, 3] },
      tensors,
    );
    const layers = checkpoint.model.layers.map(({ feedForward }) =>
      feedForward.kind === "moe" ? [feedForward.experts.length, feedForward.router.topK] : [],
    );
    expect(layers).toEqual([
      [8, 2],
      [5, 1],
      [8, 3],
    ]);
    await expectError(
      loadMade({ ...config, num_experts: [8, 5] }, tensors),
      "COPPICE_FORMAT_CONFIG",
      "one for every layer",
    );
  });
});

describe("layers for multi-token prediction", () => {
  async function withMtp(layers: number, family = "deepseek_v3") {
    const { tensors, config } = await fixture(family);
    for (let i = 0; i < layers; i++) {
      copyLayer(tensors, "model.layers.2.", `model.layers.${3 + i}.`);
      tensors.set(`model.layers.${3 + i}.eh_proj.weight`, zeros([64, 128]));
      tensors.set(`model.layers.${3 + i}.shared_head.norm.weight`, zeros([64]));
    }
    return { tensors, config: { ...config, num_nextn_predict_layers: layers } };
  }

  it("follow the plan of the last layer with experts", async () => {
    for (const family of ["deepseek_v3", "glm4_moe"]) {
      const { tensors, config } = await withMtp(2, family);
      await using checkpoint = await loadMade(config, tensors);
      expect(checkpoint.mtpLayers).toBe(2);
      expect(checkpoint.model.layers).toHaveLength(3);
      expect(checkpoint.edits.map(({ layer, label }) => [layer, label])).toEqual([
        [1, "layer 1"],
        [2, "layer 2"],
        [2, "multi-token-prediction layer 3"],
        [2, "multi-token-prediction layer 4"],
      ]);
      const { rows, separate } = checkpoint.edits[3]!;
      expect(rows.map(({ tensor }) => tensor.name)).toEqual([
        "model.layers.4.mlp.gate.weight",
        "model.layers.4.mlp.gate.e_score_correction_bias",
      ]);
      expect(separate).toHaveLength(24);
      expect(separate[0]?.tensor.name).toContain("model.layers.4.mlp.experts.");
    }
  });

  it("lose the same experts", async () => {
    const { tensors, config } = await withMtp(1, "glm4_moe");
    await using checkpoint = await loadMade(config, tensors);
    const plan = createPlan(checkpoint.model, [
      { layer: 1, experts: [0, 1, 2, 3] },
      { layer: 2, experts: [7, 5, 3, 1] },
    ]);
    const target = memoryTarget();
    await applyPlan(checkpoint, plan, target);
    await using smaller = await loadModel(memoryFolder(target.files));
    expect(smaller.edits.map(({ label, experts }) => [label, experts])).toEqual([
      ["layer 1", 4],
      ["layer 2", 4],
      ["multi-token-prediction layer 3", 4],
    ]);
    const read = (of: typeof smaller, name: string) => of.weights.read(of.tensors.get(name) as TensorRef);
    const row = (values: Float32Array, expert: number) => [...values.slice(expert * 64, (expert + 1) * 64)];
    const router = "model.layers.3.mlp.gate.weight";
    const [before, after] = [await read(checkpoint, router), await read(smaller, router)];
    expect([0, 1, 2, 3].map((slot) => row(after, slot))).toEqual(
      [7, 5, 3, 1].map((expert) => row(before, expert)),
    );
    expect(await read(smaller, "model.layers.3.mlp.experts.1.up_proj.weight")).toEqual(
      await read(checkpoint, "model.layers.3.mlp.experts.5.up_proj.weight"),
    );
  });

  it("may have been left out", async () => {
    const { tensors, config } = await withMtp(0);
    await using checkpoint = await loadMade({ ...config, num_nextn_predict_layers: 1 }, tensors);
    expect(checkpoint.mtpLayers).toBe(0);
  });

  it("that contradict the config are refused", async () => {
    const { tensors, config } = await withMtp(1);
    for (const stated of [0, 2]) {
      await expectError(
        loadMade({ ...config, num_nextn_predict_layers: stated }, tensors),
        "COPPICE_FORMAT_MTP",
        "1 multi-token-prediction layers (model.layers.3.*)",
        `num_nextn_predict_layers is ${stated}`,
      );
    }
    for (const name of [...tensors.keys()])
      if (/layers\.3\..*experts\.[4567]\./.test(name)) tensors.delete(name);
    tensors.set("model.layers.3.mlp.gate.weight", zeros([4, 64]));
    await expectError(
      loadMade(config, tensors),
      "COPPICE_FORMAT_MTP",
      "multi-token-prediction layer 3 has 4 rows",
      "has 8 experts",
    );
  });

  it("that lack a part are refused, because the rest would keep the old number of experts", async () => {
    for (const family of ["deepseek_v3", "glm4_moe"]) {
      const correction = "model.layers.3.mlp.gate.e_score_correction_bias";
      const { tensors, config } = await withMtp(1, family);
      const without = (part: RegExp) => new Map([...tensors].filter(([name]) => !part.test(name)));
      await expectError(
        loadMade(config, without(/layers\.3\..*correction/)),
        "COPPICE_FORMAT_MTP",
        `tensor ${correction} is missing, which layer 2 has`,
      );
      await expectError(
        loadMade(config, without(/layers\.3\..*experts\./)),
        "COPPICE_FORMAT_MTP",
        "model.layers.3.mlp.gate.weight has no experts beside it",
        "multi-token-prediction layer 3",
      );
    }
  });

  it("that are not numbered on from the decoder layers are refused", async () => {
    const { tensors, config } = await withMtp(2);
    for (const name of [...tensors.keys()]) if (name.includes("layers.3.")) tensors.delete(name);
    await expectError(
      loadMade({ ...config, num_nextn_predict_layers: 1 }, tensors),
      "COPPICE_FORMAT_MTP",
      "the files have model.layers.4.* and no model.layers.3.*",
    );
  });

  it("that lack an expert are refused", async () => {
    const { tensors, config } = await withMtp(1);
    for (const name of [...tensors.keys()]) if (/layers\.3\..*experts\.7\./.test(name)) tensors.delete(name);
    await expectError(
      loadMade(config, tensors),
      "COPPICE_FORMAT_EXPERTS",
      "multi-token-prediction layer 3 has 7 experts",
    );
  });
});
