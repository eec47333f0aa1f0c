import {
  applyPlan,
  compareTensors,
  type ExpertSlot,
  type ExpertTensors,
  type LoadedCheckpoint,
  loadModel,
  memoryFolder,
  memoryTarget,
} from "@coppice/checkpoint";
import {
  createPlan,
  elementCount,
  type LayerPlan,
  type MlpSpec,
  type MoeLayer,
  type MoeModel,
  moeLayers,
  packBfloat16,
  packFloats,
  Rng,
  roundToStored,
  type TensorRef,
  type UnitSource,
} from "@coppice/core";
import { describe, expect, it } from "vitest";
import { checkSharedBlocks } from "../src/output/expert-shares.js";
import { made } from "./edited-checkpoints.js";
import { expectError } from "./helpers.js";
import { fixture, loadMade, randomTensors } from "./made-checkpoint.js";

async function applied(checkpoint: LoadedCheckpoint, layers: readonly LayerPlan[]) {
  const plan = createPlan(checkpoint.model, layers);
  const target = memoryTarget();
  await applyPlan(checkpoint, plan, target);
  const output = await loadModel(memoryFolder(target.files));
  return { plan, output, comparison: await compareTensors(checkpoint, plan, output) };
}

/** Of two slots: small multiples of 1/64, which bfloat16 holds. */
function changesOf({ shape }: TensorRef): Float32Array {
  return Float32Array.from({ length: 2 * elementCount(shape) }, (_, i) => (((i * 7) % 31) - 15) / 64);
}

/** Slot 0: units of two experts; slot 1: an expert; the down projections of both are changed. */
function unitPlan({ index, feedForward: { experts } }: MoeLayer, rng: Rng): LayerPlan {
  const { width, down } = experts[0] as MlpSpec;
  const units = Array.from({ length: width }, (_, unit) => unit);
  const second: UnitSource = {
    expert: 2,
    to: units.map(() => rng.integer(width + 1) - 1),
    rows: units.map(() => rng.normal()),
    columns: units.map(() => rng.normal()),
  };
  const row = [0.5, 0, 0.25, 0.25, ...experts.slice(4).map(() => 0)];
  return {
    layer: index,
    experts: [2, 0],
    merge: [row, experts.map((_, expert) => Number(expert === 0))],
    units: [[{ expert: 0, to: rng.sample(width, width), rows: 0.5, columns: 2 }, second], null],
    down: packBfloat16(changesOf(down)),
  };
}

/**
 * Slot 0 from the formula: every unit of every source adds its row of gate and up and its column of down, to which the
 * plan's changes are added.
 */
async function slowSlot(
  checkpoint: LoadedCheckpoint,
  layer: MoeLayer,
  plan: LayerPlan,
  role: "gate" | "up" | "down",
) {
  const sources = plan.units?.[0] as readonly UnitSource[];
  const { experts } = layer.feedForward;
  const ref = experts[2]?.[role] as TensorRef;
  const { width } = experts[2] as MlpSpec;
  const size = elementCount(ref.shape) / width;
  const sum = new Float64Array(elementCount(ref.shape));
  const at = (unit: number, i: number) => (role === "down" ? i * width + unit : unit * size + i);
  for (const { expert, to, rows, columns } of sources) {
    const values = await checkpoint.weights.read(experts[expert]?.[role] as TensorRef);
    const factors = role === "down" ? columns : rows;
    for (const [unit, target] of to.entries()) {
      if (target < 0) continue;
      const factor = typeof factors === "number" ? factors : (factors[unit] as number);
      for (let i = 0; i < size; i++) {
        sum[at(target, i)] = (sum[at(target, i)] as number) + factor * (values[at(unit, i)] as number);
      }
    }
  }
  if (role === "down")
    for (const i of sum.keys()) sum[i] = Math.fround(sum[i] as number) + (changesOf(ref)[i] as number);
  const values = Float32Array.from(sum);
  roundToStored(values, ref);
  return values;
}

describe.each(Object.entries(made))("%s, which is edited only", (_, { config, shapes }) => {
  it("gets hidden units, changes of down and router rows of its plan", async () => {
    const rng = Rng.fromSeed(5);
    await using checkpoint = await loadMade(config, randomTensors(shapes));
    const layers = moeLayers(checkpoint.model);
    const plans = layers.map((layer): LayerPlan => {
      const [, hidden] = layer.feedForward.router.weight.shape as [number, number];
      const weight = packFloats(Float32Array.from({ length: 2 * hidden }, () => rng.normal()));
      const correction = layer.feedForward.router.correction && [0.5, 0.25];
      return { ...unitPlan(layer, rng), router: { weight, ...(correction && { correction }) } };
    });
    const { output, comparison } = await applied(checkpoint, plans);
    expect(comparison.differences).toEqual([]);
    for (const [i, layer] of layers.entries()) {
      const plan = plans[i] as LayerPlan;
      const found = moeLayers(output.model)[i]?.feedForward;
      for (const role of ["gate", "up", "down"] as const) {
        const ref = found?.experts[0]?.[role];
        if (ref)
          expect(await output.weights.read(ref)).toEqual(await slowSlot(checkpoint, layer, plan, role));
      }
      const [own, kept] = [layer.feedForward.experts[0], found?.experts[1]] as [MlpSpec, MlpSpec];
      expect(await output.weights.read(kept.up)).toEqual(await checkpoint.weights.read(own.up));
      const changed = await checkpoint.weights.read(own.down);
      const changes = changesOf(own.down).subarray(changed.length);
      for (const [i, change] of changes.entries()) changed[i] = (changed[i] as number) + change;
      roundToStored(changed, own.down);
      expect(await output.weights.read(kept.down)).toEqual(changed);
      const weight = await output.weights.read(found?.router.weight as TensorRef);
      expect(packFloats(weight)).toBe(plan.router?.weight);
      if (found?.router.correction) {
        expect([...(await output.weights.read(found.router.correction))]).toEqual([0.5, 0.25]);
      }
    }
  });
});

describe("layers for multi-token prediction", () => {
  it("keep their own router entries, and experts where the plan puts hidden units together or changes down", async () => {
    const rng = Rng.fromSeed(6);
    const { tensors, config } = await fixture("glm4_moe");
    for (const [name, tensor] of [...tensors]) {
      if (!name.startsWith("model.layers.2.")) continue;
      const bytes = tensor.bytes.slice();
      // Values of its own, still small and finite.
      for (let i = 0; i < bytes.length; i += 4) bytes[i] = rng.integer(256);
      tensors.set(name.replace("layers.2.", "layers.3."), { ...tensor, bytes });
    }
    await using checkpoint = await loadMade({ ...config, num_nextn_predict_layers: 1 }, tensors);
    const plans = moeLayers(checkpoint.model).map((layer): LayerPlan => {
      const [, hidden] = layer.feedForward.router.weight.shape as [number, number];
      const router = { weight: packFloats(new Float32Array(2 * hidden).fill(0.5)), correction: [1, 2] };
      return { ...unitPlan(layer, rng), router };
    });
    const { output, comparison } = await applied(checkpoint, plans);
    expect(comparison.differences).toEqual([]);
    const read = (of: LoadedCheckpoint, name: string) => of.weights.read(of.tensors.get(name) as TensorRef);
    for (const part of ["gate_proj", "up_proj", "down_proj"]) {
      for (const [slot, expert] of [2, 0].entries()) {
        expect(await read(output, `model.layers.3.mlp.experts.${slot}.${part}.weight`)).toEqual(
          await read(checkpoint, `model.layers.3.mlp.experts.${expert}.${part}.weight`),
        );
      }
    }
    for (const [name, size] of [
      ["weight", 64],
      ["e_score_correction_bias", 1],
    ] as const) {
      const before = await read(checkpoint, `model.layers.3.mlp.gate.${name}`);
      const rows = [2, 0].flatMap((expert) => [...before.subarray(expert * size, (expert + 1) * size)]);
      expect([...(await read(output, `model.layers.3.mlp.gate.${name}`))]).toEqual(rows);
    }
    const own = await read(output, "model.layers.2.mlp.gate.e_score_correction_bias");
    expect([...own]).toEqual([1, 2]);
  });
});

describe("experts whose values cannot be computed", () => {
  it("share scales with others: rows of stacks that lie transposed hold units of all of them", () => {
    const scales: TensorRef = { name: "scales", dtype: "F32", shape: [4, 1], file: "f", begin: 0, end: 16 };
    const stack: TensorRef = {
      ...{ name: "gate", dtype: "F8_E4M3", file: "f", begin: 16, end: 40 },
      shape: [3, 4],
      view: { offset: 0, strides: [1, 6] },
      scales: { format: "scaled", stored: [4, 6], rows: 1, columns: 6, scales },
    };
    const model = { layers: [{ index: 0, feedForward: { kind: "moe", experts: [{ gate: stack }] } }] };
    const set = { layer: 0, label: "layer 0" } as ExpertTensors;
    const rest = { kind: "expert", expert: 0 } as const;
    const check = (slot: ExpertSlot) => () => checkSharedBlocks(model as unknown as MoeModel, set, [slot]);
    expect(check({ kind: "units", expert: 0, units: [], rest })).toThrow(/gate shares blocks of scales/);
    expect(check(rest)).not.toThrow();
    const delta = () => new Float32Array(0);
    const changed = (rest: Extract<ExpertSlot, { kind: "expert" | "merge" }>) =>
      check({ kind: "changed", expert: 0, rest, delta });
    expect(changed(rest)).not.toThrow();
    const two = { kind: "merge", expert: 0, experts: [0, 1], coefficients: [0.5, 0.5] } as const;
    expect(changed(two)).toThrow(/gate shares blocks of scales/);
  });

  it("cannot be put together unit by unit nor changed", async () => {
    const { tensors, config } = await fixture("mixtral");
    for (const [name, { shape }] of [...tensors]) {
      if (!/experts\.\d+\.w\d\.weight$/.test(name)) continue;
      tensors.delete(name);
      const [rows, columns] = shape as [number, number];
      const base = name.replace(/weight$/, "");
      const packs = randomTensors([
        [`${base}qweight`, [columns / 8, rows], "I32"],
        [`${base}qzeros`, [1, rows / 8], "I32"],
        [`${base}scales`, [1, rows], "F32"],
      ]);
      for (const [packed, tensor] of packs) tensors.set(packed, tensor);
    }
    const quantization_config = { quant_method: "gptq", bits: 4 };
    await using checkpoint = await loadMade({ ...config, quantization_config }, tensors);
    const plans = moeLayers(checkpoint.model).map((layer) => unitPlan(layer, Rng.fromSeed(1)));
    await expectError(applied(checkpoint, plans), "COPPICE_PLAN_EXPORT", "packed");
    const changed = plans.map(({ merge: _, units: __, ...plan }) => plan);
    await expectError(applied(checkpoint, changed), "COPPICE_PLAN_EXPORT", "packed");
    const kept = changed.map(({ down: _, ...plan }) => plan);
    expect((await applied(checkpoint, kept)).comparison.differences).toEqual([]);
  });
});
