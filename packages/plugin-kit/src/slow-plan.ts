import {
  type LayerPlan,
  type MlpSpec,
  type MoeSpec,
  type RouterSpec,
  roundToStored,
  type TensorRef,
  type UnitSource,
} from "@coppice/core";

export type Values = (ref: TensorRef) => Float32Array;

export const mlpParts = ["gate", "up", "down", "gateBias", "upBias", "downBias"] as const;
export type MlpPart = (typeof mlpParts)[number];

/**
 * One part of a slot from the formulas of `LayerPlan.merge`, `LayerPlan.units` and `LayerPlan.down`, rounded to what the
 * checkpoint would store; undefined when experts have no such part.
 */
export function slotValues(
  { experts }: MoeSpec,
  plan: LayerPlan,
  slot: number,
  part: MlpPart,
  values: Values,
): Float32Array | undefined {
  const refs = experts.map((expert) => expert[part]);
  const [first] = refs;
  if (!first) return undefined;
  const sources = refs.map((ref) => values(ref as TensorRef));
  const units = part === "downBias" ? undefined : plan.units?.[slot];
  const row = plan.merge?.[slot];
  const change = part === "down" && plan.down !== undefined ? slotDeltas(plan.down, slot, plan) : [];
  const changes = change.some((value) => value !== 0);
  const kept = sources[plan.experts[slot] as number] as Float32Array;
  if (!units && !row && !changes) return kept;
  const sums = units
    ? unitSums(units, sources, (experts[0] as MlpSpec).width, part === "down")
    : kept.map((value, i) => (row ? weighted(row, sources, i) : value));
  const changed = changes ? sums.map((sum, i) => sum + (change[i] as number)) : sums;
  roundToStored(changed, first);
  return changed;
}

/** Base64 of little-endian bfloat16 values, the upper halves of float32 ones: those of one slot. */
function slotDeltas(text: string, slot: number, { experts }: LayerPlan): number[] {
  const letters = atob(text);
  const size = letters.length / 2 / experts.length;
  const word = new DataView(new ArrayBuffer(4));
  return Array.from({ length: size }, (_, i) => {
    const at = 2 * (slot * size + i);
    word.setUint8(0, letters.charCodeAt(at + 1));
    word.setUint8(1, letters.charCodeAt(at));
    return word.getFloat32(0);
  });
}

function weighted(row: readonly number[], sources: readonly Float32Array[], at: number): number {
  return row.reduce((sum, factor, j) => sum + factor * (sources[j]?.[at] as number), 0);
}

/** Unit u of an expert is row u of gate and up, and column u of down. */
function unitSums(
  units: readonly UnitSource[],
  sources: readonly Float32Array[],
  width: number,
  columnwise: boolean,
): Float32Array {
  const length = (sources[0] as Float32Array).length;
  const size = length / width;
  const sums = new Array<number>(length).fill(0);
  const at = (unit: number, i: number) => (columnwise ? i * width + unit : unit * size + i);
  for (const { expert, to, rows, columns } of units) {
    const factors = columnwise ? columns : rows;
    to.forEach((target, unit) => {
      if (target < 0) return;
      const factor = typeof factors === "number" ? factors : (factors[unit] as number);
      for (let i = 0; i < size; i++) {
        const value = factor * (sources[expert]?.[at(unit, i)] as number);
        sums[at(target, i)] = (sums[at(target, i)] as number) + value;
      }
    });
  }
  return Float32Array.from(sums);
}

/** Values of a router for all original experts: those of kept experts as the plan has them. */
export interface SlowRouter {
  readonly weight: Float32Array;
  readonly bias: Float32Array | undefined;
  readonly correction: Float32Array | undefined;
}

export function routerValues(router: RouterSpec, plan: LayerPlan | undefined, values: Values): SlowRouter {
  const own = plan?.router;
  const replaced = (ref: TensorRef | undefined, rows: Float32Array | undefined) => {
    if (!ref || !plan || !rows) return ref && values(ref);
    roundToStored(rows, ref);
    const size = rows.length / plan.experts.length;
    const all = values(ref).slice();
    plan.experts.forEach((expert, slot) => {
      all.set(rows.subarray(slot * size, (slot + 1) * size), expert * size);
    });
    return all;
  };
  return {
    weight: replaced(router.weight, own && unpacked(own.weight)) as Float32Array,
    bias: replaced(router.bias, own?.bias && Float32Array.from(own.bias)),
    correction: replaced(router.correction, own?.correction && Float32Array.from(own.correction)),
  };
}

/** Base64 of little-endian float32 values. */
function unpacked(text: string): Float32Array {
  const bytes = new DataView(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
  return Float32Array.from({ length: bytes.byteLength / 4 }, (_, i) => bytes.getFloat32(4 * i, true));
}
