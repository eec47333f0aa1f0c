import {
  applyPlan,
  compareTensors,
  inspectModel,
  type LoadedCheckpoint,
  loadModel,
  memoryFolder,
  memoryTarget,
} from "@coppice/checkpoint";
import {
  createPlan,
  type LayerPlan,
  type MoeLayer,
  moeLayers,
  packFloats,
  type RouterRows,
  roundToDtype,
  type TensorRef,
} from "@coppice/core";
import { describe, expect, it } from "vitest";
import { editConfig, expectError, type Files, load, text, tinyFiles } from "./helpers.js";

async function applied(
  checkpoint: LoadedCheckpoint,
  layers: readonly LayerPlan[],
  options: Parameters<typeof applyPlan>[3] = {},
) {
  const plan = createPlan(checkpoint.model, layers);
  const target = memoryTarget();
  await applyPlan(checkpoint, plan, target, options);
  const files: Files = new Map(target.files);
  const output = await loadModel(memoryFolder(files));
  return { plan, files, output, comparison: await compareTensors(checkpoint, plan, output) };
}

const routerOf = (checkpoint: LoadedCheckpoint, layer: number) =>
  (moeLayers(checkpoint.model)[layer] as MoeLayer).feedForward.router;
const read = async (checkpoint: LoadedCheckpoint, ref: TensorRef | undefined) =>
  Array.from(await checkpoint.weights.read(ref as TensorRef));
const bf16 = (values: readonly number[]) => {
  const rounded = Float32Array.from(values);
  roundToDtype(rounded, "BF16");
  return [...rounded];
};

/** Rows i / 10 of a hidden size of 8. */
const rows = (slots: number) => Array.from({ length: slots * 8 }, (_, i) => i / 10);
const rowsPlan = (slots: number, more: Partial<RouterRows> = {}): RouterRows => ({
  weight: packFloats(Float32Array.from(rows(slots))),
  ...more,
});

describe("router rows of a plan", () => {
  it("are written in slot order, rounded to what the router's tensors hold", async () => {
    await using checkpoint = await load(await tinyFiles({ family: "minimax_m2" }));
    const router = rowsPlan(2, { correction: [0.1, 0.3] });
    const { output, comparison } = await applied(checkpoint, [
      { layer: 0, experts: [3, 1], router },
      { layer: 1, experts: [0, 2] },
    ]);
    expect(comparison.differences).toEqual([]);
    const { weight, correction } = routerOf(output, 0);
    expect(weight.dtype).toBe("BF16");
    expect(await read(output, weight)).toEqual(bf16(rows(2)));
    const stored = Float32Array.of(0.1, 0.3);
    roundToDtype(stored, (correction as TensorRef).dtype);
    expect(await read(output, correction)).toEqual([...stored]);
  });

  it("leave corrections that they do not name as those of the kept experts", async () => {
    await using checkpoint = await load(await tinyFiles({ family: "minimax_m2" }));
    const before = await read(checkpoint, routerOf(checkpoint, 0).correction);
    const plan = [0, 1].map((layer) => ({ layer, experts: [3, 1], router: rowsPlan(2) }));
    const { output, comparison } = await applied(checkpoint, plan);
    expect(comparison.differences).toEqual([]);
    expect(await read(output, routerOf(output, 0).correction)).toEqual([before[3], before[1]]);
  });

  it("may replace the rows of a layer that keeps all experts", async () => {
    await using checkpoint = await load(await tinyFiles());
    const { output, comparison } = await applied(checkpoint, [
      { layer: 1, experts: [0, 1, 2, 3], router: rowsPlan(4) },
    ]);
    expect(comparison.differences).toEqual([]);
    expect(await read(output, routerOf(output, 1).weight)).toEqual(bf16(rows(4)));
    expect(await read(output, routerOf(output, 0).weight)).toEqual(
      await read(checkpoint, routerOf(checkpoint, 0).weight),
    );
  });

  it("go with their experts where groups put those in ascending order", async () => {
    const config = {
      n_group: 2,
      topk_group: 1,
      first_k_dense_replace: 0,
      q_lora_rank: null,
      kv_lora_rank: 16,
    };
    const files = await tinyFiles({ family: "deepseek_v3", experts: 8, config });
    await using checkpoint = await load(files);
    const experts = [6, 1, 4, 0];
    const router = rowsPlan(4, { correction: [6, 1, 4, 0] });
    const plan = [0, 1].map((layer) => ({ layer, experts, router }));
    const { output, comparison } = await applied(checkpoint, plan);
    expect(comparison.differences).toEqual([]);
    expect(await read(output, routerOf(output, 0).correction)).toEqual([0, 1, 4, 6]);
    const order = [3, 1, 2, 0].flatMap((slot) => rows(4).slice(slot * 8, slot * 8 + 8));
    expect(await read(output, routerOf(output, 0).weight)).toEqual(bf16(order));
  });

  it("stand beside experts that fill up", async () => {
    await using checkpoint = await load(await tinyFiles({ family: "minimax_m2" }));
    const { output, comparison } = await applied(checkpoint, [
      { layer: 0, experts: [3, 1], router: rowsPlan(2, { correction: [0.5, 0.25] }) },
      { layer: 1, experts: [0, 1, 2] },
    ]);
    expect(comparison.differences).toEqual([]);
    expect(await read(output, routerOf(output, 0).weight)).toEqual([...bf16(rows(2)), ...rows(1).fill(0)]);
    expect((await read(output, routerOf(output, 0).correction))[2]).toBeLessThan(-9e8);
  });

  it("are missed by verification when others are written", async () => {
    await using checkpoint = await load(await tinyFiles());
    const plan = [0, 1].map((layer) => ({ layer, experts: [2, 0] }));
    const { output } = await applied(checkpoint, plan);
    const wanted = createPlan(
      checkpoint.model,
      plan.map((layer) => ({ ...layer, router: rowsPlan(2) })),
    );
    const { differences } = await compareTensors(checkpoint, wanted, output);
    expect(differences[0]).toMatch(/gate.weight\[0\] is not that of the plan/);
  });
});

describe("skip rules of a plan", () => {
  const ratio = { rule: "ratio", threshold: 0.5, spare: 0.1 } as const;
  const all = [0, 1, 2, 3];

  it("are refused in the stock layout", async () => {
    await using checkpoint = await load(await tinyFiles());
    await expectError(
      applied(checkpoint, [{ layer: 0, experts: all, skip: ratio }]),
      "COPPICE_PLAN_EXPORT",
      "layer 0 skips experts by a rule (ratio, 0.5), which no stock runtime does",
    );
  });

  it("stay with the runtime layout, through further plans, until one takes them away", async () => {
    await using checkpoint = await load(await tinyFiles());
    const first = await applied(checkpoint, [{ layer: 0, experts: all, skip: ratio }], { layout: "runtime" });
    expect(first.comparison.differences).toEqual([]);
    expect(JSON.parse(text(first.files.get("config.json"))).coppice_skip).toEqual([ratio, null]);
    expect(routerOf(first.output, 0).skip).toEqual(ratio);
    expect(routerOf(first.output, 1).skip).toBeUndefined();
    expect((await inspectModel(first.output)).skips).toEqual([{ layer: 0, ...ratio }]);
    expect(await inspectModel(checkpoint)).not.toHaveProperty("skips");
    expect(first.output.model.fingerprint).not.toBe(checkpoint.model.fingerprint);
    const topP = { rule: "top-p", threshold: 0.75 } as const;
    const pruned = [
      { layer: 0, experts: [0, 1] },
      { layer: 1, experts: [2, 3], skip: topP },
    ];
    await expectError(applied(first.output, pruned), "COPPICE_PLAN_EXPORT", "layer 0 skips experts");
    const second = await applied(first.output, pruned, { layout: "runtime" });
    expect(second.comparison.differences).toEqual([]);
    expect(moeLayers(second.output.model).map(({ feedForward }) => feedForward.router.skip)).toEqual([
      ratio,
      topP,
    ]);
    const none = { rule: "ratio", threshold: 0 } as const;
    const third = await applied(
      second.output,
      [0, 1].map((layer) => ({ layer, experts: [0, 1], skip: none })),
    );
    expect(third.comparison.differences).toEqual([]);
    expect(JSON.parse(text(third.files.get("config.json"))).coppice_skip).toBeNull();
    const plain = await applied(checkpoint, [
      { layer: 0, experts: [0, 1] },
      { layer: 1, experts: [2, 3] },
    ]);
    expect(third.output.model.fingerprint).toBe(plain.output.model.fingerprint);
  });

  it("are missed by verification when others are stated", async () => {
    await using checkpoint = await load(await tinyFiles());
    const { files } = await applied(checkpoint, [{ layer: 0, experts: all, skip: ratio }], {
      layout: "runtime",
    });
    await using other = await load(
      editConfig(files, { coppice_skip: [{ ...ratio, threshold: 0.25 }, null] }),
    );
    const plan = createPlan(checkpoint.model, [{ layer: 0, experts: all, skip: ratio }]);
    expect((await compareTensors(checkpoint, plan, other)).differences).toEqual([
      "layer 0 has the skip rule ratio 0.25, spare 0.1, expected ratio 0.5, spare 0.1",
    ]);
  });

  it("are refused in a config when they are no rules", async () => {
    const files = await tinyFiles();
    for (const [stated, words] of [
      [5, "coppice_skip is 5, expected a list with a rule or null for each of 2 layers"],
      [[null], "expected a list"],
      [[null, { rule: "p", threshold: 1 }], "coppice_skip[1] is"],
      [[{ rule: "ratio", threshold: 2 }, null], "coppice_skip[0] is"],
      [[{ rule: "ratio", threshold: 0.5, more: 1 }, null], "coppice_skip[0] is"],
      [["ratio", null], 'coppice_skip[0] is "ratio"'],
    ] as const) {
      await expectError(load(editConfig(files, { coppice_skip: stated })), "COPPICE_FORMAT_CONFIG", words);
    }
    const dense = {
      first_k_dense_replace: 1,
      q_lora_rank: null,
      kv_lora_rank: 16,
      n_group: 1,
      topk_group: 1,
    };
    const mixed = await tinyFiles({ family: "deepseek_v3", config: dense });
    const rules = [{ rule: "ratio", threshold: 0.5 }, null];
    await expectError(
      load(editConfig(mixed, { coppice_skip: rules })),
      "COPPICE_FORMAT_CONFIG",
      "expected null, because the layer has no experts",
    );
  });
});
