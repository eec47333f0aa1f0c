import {
  addDelta,
  downDelta,
  type LayerPlan,
  type MlpSpec,
  type MoeSpec,
  mergeRows,
  mergeUnits,
  onlyExpert,
  plannedRouter,
  roundToStored,
} from "@coppice/core";
import {
  createMatrix,
  disposeMatrix,
  type ExpertStack,
  embed,
  type Gpu,
  type GpuBuffer,
  type GpuMatrix,
  slotGroups,
  writeRows,
} from "@coppice/kernels-webgpu";
import type { ExpertBiases, MoeWeights } from "./model-weights.js";
import { commonFormat, floatFormat, interleave } from "./weight-format.js";

/** What an MoE layer multiplies under a plan, on the device. */
export interface PlannedExperts {
  readonly slotCount: number;
  /** [slots] u32: block of each slot, counted through all stacks. */
  readonly places: GpuBuffer;
  readonly units: readonly ExpertStack[];
  readonly down: readonly ExpertStack[];
  /** Router rows in use, one per slot, or all of them under a router map; in blocks of one row. */
  readonly router: GpuMatrix;
  readonly routerBias: GpuBuffer | undefined;
  /** Correction of the choice, on the device and as values. */
  readonly correction: GpuBuffer | undefined;
  readonly correctionValues: Float32Array | undefined;
  readonly routerRows: number;
  readonly map: GpuBuffer | undefined;
  readonly groupOf: GpuBuffer | undefined;
  dispose(): void;
}

type Part = "gate" | "up" | "down" | "gateBias" | "upBias" | "downBias";

/** The slots of one layer under a plan. What a plan leaves unchanged stays where it is; the rest is computed anew. */
export async function planExperts(
  gpu: Gpu,
  spec: MoeSpec,
  weights: MoeWeights,
  plan: LayerPlan | undefined,
): Promise<PlannedExperts> {
  const { experts, router } = weights;
  const count = spec.experts.length;
  const rows = plan && !plan.routerMap ? plannedRouter(router, plan, spec.router) : router;
  const slotCount = plan?.experts.length ?? count;
  const changed: number[] = [];
  const places = Uint32Array.from({ length: slotCount }, (_, slot) => {
    const whole = plan ? unchangedExpert(plan, slot) : slot;
    return whole ?? count + changed.push(slot) - 1;
  });
  const made = plan && changed.length > 0 ? await makeSlots(gpu, spec, weights, plan, changed) : undefined;
  const own: { dispose(): void }[] = made ? [made] : [];
  const upload = (values: Float32Array | Uint32Array | undefined, label: string) => {
    const buffer = values && gpu.upload(values, label);
    if (buffer) own.push(buffer);
    return buffer;
  };
  const hidden = spec.router.weight.shape[1] as number;
  const routerRows = rows.weight.length / hidden;
  const matrix = createMatrix(
    gpu,
    { format: { kind: "f32" }, blocks: routerRows, rows: 1, columns: hidden },
    "a router",
  );
  own.push({ dispose: () => disposeMatrix(matrix) });
  writeRows(gpu, matrix, 0, rows.weight);
  const groupOf = slotGroups(spec.router, slotCount, plan);
  return {
    slotCount,
    places: upload(places, "places of slots") as GpuBuffer,
    units: [experts.units, ...(made ? [made.units] : [])],
    down: [experts.down, ...(made ? [made.down] : [])],
    router: matrix,
    routerBias: upload(rows.bias, "router biases"),
    correction: upload(rows.correction, "router corrections"),
    correctionValues: rows.correction,
    routerRows,
    map: upload(plan?.routerMap && Float32Array.from(plan.routerMap.flat()), "a router map"),
    groupOf: upload(groupOf, "groups of slots"),
    dispose() {
      for (const one of own) one.dispose();
    },
  };
}

/** The expert that a slot is, when a plan leaves it as it is stored. */
export function unchangedExpert(plan: LayerPlan, slot: number): number | undefined {
  if (plan.units?.[slot] || downDelta(plan, slot)) return undefined;
  return wholeExpert(plan, slot);
}

function wholeExpert({ experts, merge }: LayerPlan, slot: number): number | undefined {
  const row = merge?.[slot];
  return row ? onlyExpert(row) : experts[slot];
}

/**
 * Merged, changed and rounded as it is stored: by the definitions of core, on the host, from what the device holds, so that a slot
 * has the bits that an exported checkpoint would have.
 */
async function makeSlots(
  gpu: Gpu,
  spec: MoeSpec,
  { experts, biases }: MoeWeights,
  plan: LayerPlan,
  slots: readonly number[],
): Promise<{ units: ExpertStack; down: ExpertStack; dispose(): void }> {
  const first = spec.experts[0] as MlpSpec;
  const { width, gated } = experts;
  const turns = gated ? 2 : 1;
  const hidden = first.down.shape[0] as number;
  const blocks = slots.length;
  // Merged values are rounded to their dtype, which its own format holds; codes of computed weights do not exist.
  const format = commonFormat(first.gate ? [first.up, first.gate] : [first.up], false);
  const units = createMatrix(gpu, { format, blocks, rows: turns * width, columns: hidden }, "merged experts");
  const down = createMatrix(
    gpu,
    { format: floatFormat(first.down), blocks, rows: hidden, columns: width },
    "merged experts",
  );
  const unitBias = new Float32Array(first.upBias ? blocks * turns * width : 0);
  const downBias = new Float32Array(first.downBias ? blocks * hidden : 0);
  const source = new StoredExperts(gpu, experts.units.matrix, experts.down.matrix, biases, turns);
  try {
    for (const [i, slot] of slots.entries()) {
      const values = (part: Part) => slotPart(spec, plan, slot, part, source);
      const up = (await values("up")) as Float32Array;
      const gate = await values("gate");
      writeRows(gpu, units, i * turns * width, gate ? interleave(up, gate, hidden) : up);
      writeRows(gpu, down, i * hidden, (await values("down")) as Float32Array);
      const upBias = await values("upBias");
      const gateBias = await values("gateBias");
      if (upBias) unitBias.set(gateBias ? interleave(upBias, gateBias, 1) : upBias, i * turns * width);
      const last = await values("downBias");
      if (last) downBias.set(last, i * hidden);
    }
  } catch (error) {
    disposeMatrix(units);
    disposeMatrix(down);
    throw error;
  }
  const upload = (values: Float32Array) =>
    values.length > 0 ? gpu.upload(values, "biases of merged experts") : undefined;
  const stacks = {
    units: { matrix: units, bias: upload(unitBias) },
    down: { matrix: down, bias: upload(downBias) },
  };
  return {
    ...stacks,
    dispose() {
      for (const { matrix, bias } of [stacks.units, stacks.down]) {
        disposeMatrix(matrix);
        bias?.dispose();
      }
    },
  };
}

async function slotPart(
  spec: MoeSpec,
  plan: LayerPlan,
  slot: number,
  part: Part,
  source: StoredExperts,
): Promise<Float32Array | undefined> {
  const first = spec.experts[0] as MlpSpec;
  const ref = first[part];
  if (!ref) return undefined;
  const units = part === "downBias" ? undefined : plan.units?.[slot];
  const whole = units ? undefined : wholeExpert(plan, slot);
  const delta = part === "down" ? downDelta(plan, slot) : undefined;
  if (whole !== undefined && !delta) return source.read(whole, part);
  let out: Float32Array;
  if (whole !== undefined) out = (await source.read(whole, part)) as Float32Array;
  else if (units) {
    const sources = [];
    for (const unit of units)
      sources.push({ source: unit, values: (await source.read(unit.expert, part)) as Float32Array });
    out = new Float32Array(ref.shape.reduce((a, b) => a * b, 1));
    mergeUnits(part as Exclude<Part, "downBias">, sources, first.width, out);
  } else {
    const row = plan.merge?.[slot] as readonly number[];
    const sources: Float32Array[] = [];
    for (const [expert, factor] of row.entries())
      sources.push(factor === 0 ? new Float32Array(0) : ((await source.read(expert, part)) as Float32Array));
    out = new Float32Array(ref.shape.reduce((a, b) => a * b, 1));
    mergeRows(sources, row, out);
  }
  if (delta) addDelta(out, delta);
  roundToStored(out, ref);
  return out;
}

/** Reads experts back from the device, widened to float32. */
class StoredExperts {
  readonly #gpu: Gpu;
  readonly #units: GpuMatrix;
  readonly #down: GpuMatrix;
  readonly #biases: readonly ExpertBiases[];
  readonly #turns: number;

  constructor(gpu: Gpu, units: GpuMatrix, down: GpuMatrix, biases: readonly ExpertBiases[], turns: number) {
    this.#gpu = gpu;
    this.#units = units;
    this.#down = down;
    this.#biases = biases;
    this.#turns = turns;
  }

  async read(expert: number, part: Part): Promise<Float32Array | undefined> {
    const biases = this.#biases[expert];
    switch (part) {
      case "upBias":
        return biases?.up;
      case "gateBias":
        return biases?.gate;
      case "downBias":
        return biases?.down;
      case "down":
        return this.#rows(this.#down, expert, 1, 0);
      default:
        return this.#rows(this.#units, expert, this.#turns, part === "up" ? 0 : 1);
    }
  }

  /** Every `step`th row of a block, from row `from` on. */
  async #rows(matrix: GpuMatrix, block: number, step: number, from: number): Promise<Float32Array> {
    const gpu = this.#gpu;
    const count = matrix.rows / step;
    const ids = gpu.upload(
      Uint32Array.from({ length: count }, (_, i) => block * matrix.rows + i * step + from),
      "rows of an expert",
    );
    const values = gpu.buffer(4 * count * matrix.columns, "an expert");
    try {
      embed(gpu, matrix, ids, count, values);
      return await gpu.readFloats(values, count * matrix.columns);
    } finally {
      ids.dispose();
      values.dispose();
    }
  }
}
