import { applyPlan, families, loadModel, memoryFolder, memoryTarget } from "@coppice/checkpoint";
import { createPlan, type MlpSpec, moeLayers } from "@coppice/core";
import { describe, expect, it } from "vitest";
import {
  experts,
  hidden,
  made,
  qwenConfig,
  qwenEnds,
  qwenLayer,
  shapes,
  width,
} from "./edited-checkpoints.js";
import { expectError } from "./helpers.js";
import { floats, loadMade, randomTensors, transposed } from "./made-checkpoint.js";

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

  it("refuses tensors beside experts that have an entry for each", async () => {
    const cases: [keyof typeof made, string, number[]][] = [
      ["qwen3_next", "model.layers.1.mlp.expert_bias", [experts]],
      ["qwen3_next", "model.layers.0.mlp.experts.expert_bias", [1, experts]],
      ["qwen3_next", "mtp.layers.0.mlp.experts.expert_scale", [experts, 1]],
      ["qwen3_5_moe", "model.language_model.layers.1.mlp.experts.scale", [7, experts]],
      ["dbrx", "transformer.blocks.0.ffn.experts.importance", [experts, 3]],
      ["nemotron_h", "backbone.layers.1.mixer.other_router.weight", [experts, hidden]],
      ["jamba", "model.layers.1.feed_forward.expert_bias", [experts]],
    ];
    for (const [family, name, shape] of cases) {
      const { config, shapes: all } = made[family]!;
      await expectError(
        loadMade(config, randomTensors([...all, [name, shape]])),
        "COPPICE_FORMAT_QUANTIZED",
        `tensor ${name} stands beside experts`,
      );
    }
  });

  it("takes what is as large as there are experts by chance", async () => {
    const { config, shapes: all } = made.qwen3_next!;
    const same = all.map(([name, shape]): [string, number[]] => [
      name,
      name.includes("shared_expert.") ? shape.map((size) => (size === 10 ? experts : size)) : shape,
    ]);
    const extra: [string, number[]][] = [
      ["model.layers.0.mlp.projection.weight", [hidden, experts]],
      ["model.layers.0.linear_attn.A_log", [experts]],
    ];
    const changed = { ...config, shared_expert_intermediate_size: experts };
    await using checkpoint = await loadMade(changed, randomTensors([...same, ...extra]));
    expect(checkpoint.model.undescribed?.map(({ name }) => name)).toEqual(
      expect.arrayContaining(extra.map(([name]) => name)),
    );
  });
});
