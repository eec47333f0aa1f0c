import { elementCount, type LayerPlan, type MlpSpec, type MoeSpec, type TensorRef } from "@coppice/core";
import {
  canMerge,
  createMatrix,
  disposeMatrix,
  type ExpertStack,
  type Gpu,
  type GpuMatrix,
  type Merge,
  matrixBytes,
  slotLimit,
} from "@coppice/kernels-webgpu";
import type { MoeWeights } from "./model-weights.js";
import { unchangedExpert } from "./planned-experts.js";
import { commonFormat, floatFormat } from "./weight-format.js";

/** A slot of a plan: an expert as it is stored, or a sum of some. */
type Slot = number | { readonly key: string; readonly sources: Merge["sources"] };

/** Experts that plans of one layer share: stored ones, and merged ones that stay while there is room, by what they are the sum of. */
export class ExpertPool {
  /** Stored experts; merged ones have the blocks behind them. */
  readonly experts: number;
  /** Merged experts that there is room for; 0 where the device cannot make them. */
  readonly capacity: number;
  readonly #gpu: Gpu;
  readonly #spec: MoeSpec;
  readonly #weights: MoeWeights;
  readonly #slots = new WeakMap<LayerPlan, readonly Slot[]>();
  /** Merged experts that are held, the least recently used first: number of each. */
  readonly #held = new Map<string, number>();
  /** Those of the runs that are being recorded, which must stay. */
  readonly #needed = new Set<number>();
  #merges: Merge[] = [];
  #matrices: { readonly units: GpuMatrix; readonly down: GpuMatrix } | undefined;

  /** @param bytes that its merged experts may take; room for those of one plan is made in any case */
  constructor(gpu: Gpu, spec: MoeSpec, weights: MoeWeights, bytes: number) {
    this.#gpu = gpu;
    this.#spec = spec;
    this.#weights = weights;
    this.experts = spec.experts.length;
    const own = this.#forms.map(({ format, rows, columns }) => matrixBytes(format, rows, columns));
    const most = Math.floor(gpu.maxBindingBytes / Math.max(...own));
    const wanted = Math.max(this.experts, Math.floor(bytes / own.reduce((sum, value) => sum + value, 0)));
    this.capacity = mergesOnDevice(spec, weights) ? Math.min(wanted, most, slotLimit - this.experts) : 0;
  }

  /** Blocks of `stacks` that may be placed. */
  get blocks(): number {
    return this.experts + (this.#needed.size > 0 ? this.#held.size : 0);
  }

  /** What its merged experts are known by; equal ones are one. */
  merged(plan: LayerPlan | undefined): string[] {
    return plan ? this.#slotsOf(plan).flatMap((slot) => (typeof slot === "number" ? [] : [slot.key])) : [];
  }

  /** From here on what is placed stays until the next call. */
  begin(): void {
    this.#needed.clear();
    this.#merges = [];
  }

  /** The block of every slot of a plan; what is not held yet is among `merges` then. */
  place(plan: LayerPlan): number[] {
    return this.#slotsOf(plan).map((slot) => {
      if (typeof slot === "number") return slot;
      const known = this.#held.get(slot.key);
      const target = known ?? this.#free();
      this.#held.delete(slot.key);
      this.#held.set(slot.key, target);
      this.#needed.add(target);
      if (known === undefined) this.#merges.push({ target, sources: slot.sources });
      return this.experts + target;
    });
  }

  /** Merged experts that were placed since `begin` and are to be made before they are used. */
  get merges(): readonly Merge[] {
    return this.#merges;
  }

  /** Where merged experts are put; made when they are asked for first. */
  get matrices(): { readonly units: GpuMatrix; readonly down: GpuMatrix } {
    if (!this.#matrices) {
      const [units, down] = this.#forms.map((form) =>
        createMatrix(this.#gpu, { ...form, blocks: this.capacity }, "merged experts"),
      ) as [GpuMatrix, GpuMatrix];
      this.#matrices = { units, down };
    }
    return this.#matrices;
  }

  /** Stored experts, then merged ones where any were placed since `begin`. */
  get stacks(): { readonly units: readonly ExpertStack[]; readonly down: readonly ExpertStack[] } {
    const { units, down } = this.#weights.experts;
    const made = this.#needed.size > 0 ? this.matrices : undefined;
    return made
      ? { units: [units, { matrix: made.units }], down: [down, { matrix: made.down }] }
      : { units: [units], down: [down] };
  }

  /** Lets go of all merged experts, whose making may have failed. */
  forget(): void {
    this.#held.clear();
    this.begin();
  }

  dispose(): void {
    this.forget();
    if (this.#matrices) for (const matrix of Object.values(this.#matrices)) disposeMatrix(matrix);
    this.#matrices = undefined;
  }

  #free(): number {
    if (this.#held.size < this.capacity) return this.#held.size;
    for (const [key, target] of this.#held) {
      if (this.#needed.has(target)) continue;
      this.#held.delete(key);
      return target;
    }
    throw new RangeError(`more than ${this.capacity} merged experts of one layer are recorded at once`);
  }

  #slotsOf(plan: LayerPlan): readonly Slot[] {
    const known = this.#slots.get(plan);
    if (known) return known;
    const slots = plan.experts.map((_, slot): Slot => {
      const whole = unchangedExpert(plan, slot);
      if (whole !== undefined) return whole;
      const row = plan.merge?.[slot] as readonly number[];
      const sources = row.flatMap((factor, block) => (factor === 0 ? [] : [{ block, factor }]));
      return { key: row.join(" "), sources };
    });
    this.#slots.set(plan, slots);
    return slots;
  }

  /** Units and down of one merged expert. Values are rounded to their dtype, which its own format holds. */
  get #forms() {
    const { up, gate, down } = this.#spec.experts[0] as MlpSpec;
    const { units, down: stored } = this.#weights.experts;
    const of = ({ rows, columns }: GpuMatrix) => ({ rows, columns });
    return [
      { format: commonFormat(gate ? [up, gate] : [up], false), ...of(units.matrix) },
      { format: floatFormat(down), ...of(stored.matrix) },
    ];
  }
}

/** Whether merging is `mergeExperts`: floats without scales or biases, which lie in one buffer. */
function mergesOnDevice({ experts }: MoeSpec, { experts: { units, down } }: MoeWeights): boolean {
  const isPlain = ({ dtype, scales }: TensorRef) => !scales && /^(F32|F64|BF16|F16)$/.test(dtype);
  const [first] = experts as [MlpSpec];
  const same = (of: (expert: MlpSpec) => TensorRef | undefined) =>
    experts.every((expert) => {
      const ref = of(expert);
      return !ref || (isPlain(ref) && ref.dtype === of(first)?.dtype && elementCount(ref.shape) > 0);
    });
  return (
    !first.upBias &&
    !first.downBias &&
    same(({ up }) => up) &&
    same(({ gate }) => gate) &&
    same(({ down: ref }) => ref) &&
    (!first.gate || first.gate.dtype === first.up.dtype) &&
    canMerge(units.matrix) &&
    canMerge(down.matrix)
  );
}
