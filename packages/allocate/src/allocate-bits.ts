import {
  type ChoiceSolver,
  CoppiceError,
  isCoppiceError,
  type MoeLayer,
  type MoeModel,
  moeLayers,
} from "@coppice/core";
import { allocateUnits, type CountRule, type UnitAllocation, type UnitOption } from "./allocate-units.js";
import { checkModel, type ExpertLoss, type MatrixLoss, type Sensitivity } from "./sensitivity.js";

export interface AllocateBitsOptions {
  readonly model: MoeModel;
  readonly sensitivity: Sensitivity;
  /** Bytes that a matrix takes with so many bits per weight, scales included. */
  bytes(name: string, bits: number): number;
  /** Bytes of all matrices together. */
  readonly budget: number;
  /** The fewest bits of a matrix. @default none */
  least?(matrix: MatrixLoss): number;
  /**
   * True when the matrices of an expert may get different widths; the sensitivity must be one of `matrices` then. What two
   * matrices of an expert lose adds up worse than what experts lose. @default false
   */
  readonly mixed?: boolean;
  /**
   * Whether experts may get 0 bits, which drops them, down to the top-k of a layer: `uniform` drops as many in every layer, as
   * most stock configs need, `free` what is best. @default "none"
   */
  readonly prune?: "none" | "uniform" | "free";
  /** See `AllocateUnitsOptions`. */
  readonly solver?: ChoiceSolver;
}

export interface BitAllocation {
  /** In the order of the sensitivity; 0 for those of dropped experts. */
  readonly matrices: readonly { readonly name: string; readonly bits: number }[];
  /** Experts that are dropped, ascending; layers that keep all are not listed. */
  readonly dropped: readonly { readonly layer: number; readonly experts: readonly number[] }[];
  readonly bytes: number;
  /** Sum of the losses, in nats per position: what is expected if losses add up. */
  readonly loss: number;
  /** As in `UnitAllocation`. */
  readonly bound: number;
  readonly optimal: boolean;
}

/** The bits of all matrices of a unit, 0 in all when it is an expert that is dropped. */
interface WidthOption extends UnitOption {
  readonly bits: readonly number[];
}

/** An expert, or a matrix by itself. */
interface WidthUnit {
  readonly matrices: readonly MatrixLoss[];
  readonly options: readonly WidthOption[];
  readonly expert?: number;
}

/** The experts of a layer, or all that are none. */
interface WidthGroup {
  readonly layer?: MoeLayer;
  readonly units: readonly WidthUnit[];
}

/**
 * Chooses the bits of every matrix, and which experts are dropped, so that the sum of what they lose is the least possible
 * within a number of bytes; see `allocateUnits`.
 * @throws COPPICE_PLAN_KEEP when the budget is too small, with the least bytes; COPPICE_STATS_MODEL when the sensitivity is
 * of another model; COPPICE_USAGE when a matrix has no width that is wide enough
 */
export function allocateBits(options: AllocateBitsOptions): BitAllocation {
  const { model, sensitivity, budget, prune = "none", mixed = false, solver } = options;
  const solving = solver ? { solver } : {};
  checkModel(model, sensitivity);
  if (mixed && sensitivity.quantized !== "matrices") {
    throw new CoppiceError(
      "COPPICE_USAGE",
      "matrices of an expert are to get different widths, but whole experts were quantized when it was measured what they lose",
      { hint: "measure it matrix by matrix" },
    );
  }
  const groups = widthGroups(options);
  const ruled = (rule: (layer: MoeLayer) => Omit<CountRule<WidthOption>, "counts">) =>
    groups.map(({ layer, units }) => ({
      name: layer ? `the experts of layer ${layer.index}` : "the matrices outside of experts",
      units: units.map((unit) => unit.options),
      ...(layer && { rules: [{ counts: isKept, ...rule(layer) }] }),
    }));
  const found =
    prune === "uniform"
      ? bestUniform(model, (keep, below) => {
          return allocateUnits(
            ruled(() => ({ least: keep, most: keep })),
            { budget, below, ...solving },
          );
        })
      : allocateUnits(
          ruled(({ feedForward }) => ({ least: feedForward.router.topK })),
          { budget, ...solving },
        );
  return described(sensitivity, groups, found);
}

function isKept({ bits }: WidthOption): boolean {
  return bits.some((width) => width > 0);
}

/** The best of all numbers of experts that all layers can keep. */
function bestUniform(
  model: MoeModel,
  allocated: (keep: number, below: number) => UnitAllocation<WidthOption> | null,
): UnitAllocation<WidthOption> {
  const layers = moeLayers(model);
  const least = Math.max(...layers.map(({ feedForward }) => feedForward.router.topK));
  const most = Math.min(...layers.map(({ feedForward }) => feedForward.experts.length));
  let best: UnitAllocation<WidthOption> | undefined;
  let refusal: unknown;
  // Losses are amounts: nothing is better than none.
  for (let keep = least; keep <= most && best?.loss !== 0; keep++) {
    try {
      best = allocated(keep, best?.loss ?? Number.POSITIVE_INFINITY) ?? best;
    } catch (error) {
      // More experts than the budget has room for; what fewer take is what the caller should hear of.
      if (!isCoppiceError(error)) throw error;
      refusal ??= error;
    }
  }
  if (best) return best;
  throw (
    refusal ?? new CoppiceError("COPPICE_PLAN_KEEP", `no number of experts suits all ${layers.length} layers`)
  );
}

function widthGroups(options: AllocateBitsOptions): WidthGroup[] {
  const { model, sensitivity } = options;
  const { matrices, experts } = sensitivity;
  const others = matrices.filter(({ expert }) => expert === undefined);
  return [
    { units: others.map((matrix) => ({ matrices: [matrix], options: widths([matrix], options) })) },
    ...moeLayers(model).map((layer) => ({
      layer,
      units: layer.feedForward.experts.map((_, expert) => {
        const own = matrices.filter((matrix) => matrix.layer === layer.index && matrix.expert === expert);
        const loss = experts.find((other) => other.layer === layer.index && other.expert === expert);
        return { matrices: own, options: expertWidths(own, loss, options), expert };
      }),
    })),
  ];
}

function expertWidths(
  matrices: readonly MatrixLoss[],
  expert: ExpertLoss | undefined,
  options: AllocateBitsOptions,
): WidthOption[] {
  const all = widths(matrices, options);
  const kept = options.mixed ? all : all.filter(({ bits }) => new Set(bits).size <= 1);
  if (!expert?.dropped || (options.prune ?? "none") === "none") return kept;
  return [{ bytes: 0, loss: expert.dropped.loss, bits: matrices.map(() => 0) }, ...kept];
}

/** All combinations of widths of some matrices. */
function widths(matrices: readonly MatrixLoss[], { bytes, least }: AllocateBitsOptions): WidthOption[] {
  let all: WidthOption[] = [{ bytes: 0, loss: 0, bits: [] }];
  for (const matrix of matrices) {
    const fewest = least?.(matrix) ?? 0;
    const own = matrix.widths.filter(({ bits }) => bits >= fewest);
    if (own.length === 0) {
      const measured = matrix.widths.map(({ bits }) => bits).join(", ");
      throw new CoppiceError(
        "COPPICE_USAGE",
        `${matrix.name} may not have fewer than ${fewest} bits; the widths to choose from are ${measured}`,
      );
    }
    all = all.flatMap((so) =>
      own.map(({ bits, loss }) => ({
        bytes: so.bytes + bytes(matrix.name, bits),
        loss: so.loss + loss,
        bits: [...so.bits, bits],
      })),
    );
  }
  return all;
}

function described(
  sensitivity: Sensitivity,
  groups: readonly WidthGroup[],
  { groups: chosen, ...sums }: UnitAllocation<WidthOption>,
): BitAllocation {
  const bits = new Map<string, number>();
  const dropped: { layer: number; experts: number[] }[] = [];
  groups.forEach(({ layer, units }, g) => {
    const experts: number[] = [];
    units.forEach(({ matrices, expert }, u) => {
      const option = chosen[g]?.[u] as WidthOption;
      for (const [i, { name }] of matrices.entries()) bits.set(name, option.bits[i] as number);
      if (expert !== undefined && matrices.length > 0 && !isKept(option)) experts.push(expert);
    });
    if (layer && experts.length > 0) dropped.push({ layer: layer.index, experts });
  });
  const matrices = sensitivity.matrices.map(({ name }) => ({ name, bits: bits.get(name) as number }));
  return { matrices, dropped, ...sums };
}
