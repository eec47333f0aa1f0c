import {
  allocateBits,
  allocateMcMoe,
  type BitAllocation,
  type MatrixLoss,
  type Sensitivity,
} from "@coppice/allocate";
import {
  CoppiceError,
  createPlan,
  type MoeModel,
  moeLayers,
  type Plan,
  type QuantizedBits,
  type QuantizedFormat,
  type Quantizer,
  quantizedBits,
} from "@coppice/core";
import {
  type FormatOf,
  type FormattedMatrix,
  formatMatrices,
  modelMatrices,
  packedSize,
} from "@coppice/quantizers";
import { formatBytes } from "@coppice/report";
import type { CliContext } from "../context.js";
import { type MeasureOptions, widthSensitivity } from "./measure-widths.js";
import type { OpenModel } from "./open-model.js";

/** What the user asked for instead of the same bits for all matrices. */
export interface WidthOptions extends MeasureOptions {
  /** One of both. */
  readonly averageBits?: number;
  readonly bytes?: number;
  /** Bits to choose from; 0 drops experts. */
  readonly widths: readonly (QuantizedBits | 0)[];
  /** Fewest bits of matrices outside of experts. */
  readonly leastBits: QuantizedBits;
  readonly preset?: "mc-moe";
  readonly group: number;
  readonly asymmetric?: true;
  readonly headBits?: QuantizedBits | "keep";
  readonly embeddingBits?: QuantizedBits;
}

export interface ChosenWidths extends BitAllocation {
  readonly budget: number;
  readonly sensitivity: Sensitivity;
}

/**
 * Chooses the bits of every matrix within the budget, by what each loses at every width.
 * @throws COPPICE_PLAN_KEEP when the budget is too small, with the least bytes; those of `measureSensitivity`
 */
export async function chooseWidths(
  opened: OpenModel,
  quantizer: Quantizer,
  options: WidthOptions,
  context: CliContext,
): Promise<ChosenWidths> {
  const { model } = opened.checkpoint;
  const { averageBits, preset, widths, leastBits, headBits } = options;
  if (headBits === "keep") {
    throw new CoppiceError(
      "COPPICE_USAGE",
      "--head-bits keep needs --bits: the bits of all matrices are chosen together",
    );
  }
  if (preset && (averageBits === undefined || widths.includes(0))) {
    throw new CoppiceError(
      "COPPICE_USAGE",
      "the preset mc-moe shares out --average-bits within every layer; with 0 among the widths layers would keep different " +
        "numbers of experts, which stock checkpoints cannot say",
    );
  }
  // Refuses what cannot be quantized before anything is measured.
  const matrices = formatMatrices(modelMatrices(model), () => widthFormat(2, options));
  const sizes = new Map(matrices.map(({ weight }) => [weight.name, weight.shape as [number, number]]));
  const bytes = (name: string, bits: number) =>
    packedSize(sizes.get(name) as [number, number], widthFormat(bits as QuantizedBits, options));
  const budget = budgetOf(opened, [...sizes.keys()], bytes, options);
  const formats = quantizedBits.map((bits) => widthFormat(bits, options));
  const choose = (sensitivity: Sensitivity) => {
    const common = { model, sensitivity: withAllowed(sensitivity, model.tied, options), bytes };
    return preset && averageBits !== undefined
      ? allocateMcMoe({ ...common, average: averageBits, widths, others: leastBits })
      : allocateBits({
          ...common,
          budget,
          mixed: options.mixed ?? false,
          prune: widths.includes(0) ? "uniform" : "none",
          least: ({ expert }) => (expert === undefined ? leastBits : 0),
        });
  };
  // Refuses budgets that are too small before what takes minutes.
  choose(withoutLosses(model, matrices, options));
  const sensitivity = await widthSensitivity({ opened, quantizer, matrices, formats }, options, context);
  const found = choose(sensitivity);
  return { ...found, budget, sensitivity };
}

/** A table in which nothing costs anything, whose choice shows what is possible. */
function withoutLosses(
  model: MoeModel,
  matrices: readonly FormattedMatrix[],
  { mixed }: WidthOptions,
): Sensitivity {
  return {
    model: model.fingerprint,
    quantized: mixed ? "matrices" : "experts",
    positions: 0,
    matrices: matrices.map(({ weight, role, layer, expert }) => ({
      name: weight.name,
      role,
      ...(layer !== undefined && { layer }),
      ...(expert !== undefined && { expert }),
      widths: quantizedBits.map((bits) => ({ bits, loss: 0, error: 0 })),
    })),
    experts: moeLayers(model).flatMap(({ index, feedForward: { router, experts } }) =>
      experts.map((_, expert) => ({
        layer: index,
        expert,
        share: 0,
        gateShare: 0,
        ...(!router.groups && experts.length > router.topK && { dropped: { loss: 0, error: 0 } }),
      })),
    ),
  };
}

/** Bytes for all matrices that can be quantized. */
function budgetOf(
  { checkpoint }: OpenModel,
  names: readonly string[],
  bytes: (name: string, bits: number) => number,
  { averageBits, bytes: limit = 0 }: WidthOptions,
): number {
  if (averageBits !== undefined) {
    // Codes grow with the bits and scales do not, so sizes lie on a line.
    const at = (bits: number) => names.reduce((sum, name) => sum + bytes(name, bits), 0);
    return Math.floor(at(2) + ((averageBits - 2) / 2) * (at(4) - at(2)));
  }
  const quantized = new Set(names);
  const others = [...checkpoint.tensors.values()].reduce(
    (sum, { name, begin, end }) => (quantized.has(name) ? sum : sum + end - begin),
    0,
  );
  if (limit > others) return limit - others;
  throw new CoppiceError(
    "COPPICE_PLAN_KEEP",
    `nothing fits ${limit} bytes: tensors that are not quantized take ${others} (${formatBytes(others)})`,
    { details: { limit, least: others } },
  );
}

/** Without the widths that the user left out. */
function withAllowed(sensitivity: Sensitivity, tied: boolean, options: WidthOptions): Sensitivity {
  const { widths, headBits, embeddingBits } = options;
  const ends = { head: headBits, embedding: embeddingBits ?? (tied ? headBits : undefined) };
  const isAllowed = ({ role }: MatrixLoss, bits: number) => {
    const own = role === "head" || role === "embedding" ? ends[role] : undefined;
    return own === undefined ? (widths as readonly number[]).includes(bits) : bits === own;
  };
  const matrices = sensitivity.matrices.map((matrix) => ({
    ...matrix,
    widths: matrix.widths.filter(({ bits }) => isAllowed(matrix, bits)),
  }));
  return { ...sensitivity, matrices };
}

function widthFormat(bits: QuantizedBits, { group, asymmetric }: WidthOptions): QuantizedFormat {
  return { bits, groupSize: group, symmetric: !asymmetric };
}

/** How the matrices are quantized, in the model as it is without the dropped experts. */
export function chosenFormat(
  { matrices, dropped, sensitivity }: ChosenWidths,
  options: WidthOptions,
): FormatOf {
  const bits = new Map<string, QuantizedBits>();
  for (const [i, { name, role, layer, expert }] of sensitivity.matrices.entries()) {
    const gone = dropped.find((one) => one.layer === layer)?.experts ?? [];
    if (expert !== undefined && gone.includes(expert)) continue;
    const slot = expert === undefined ? undefined : expert - gone.filter((other) => other < expert).length;
    bits.set(keyOf(name, role, layer, slot), matrices[i]?.bits as QuantizedBits);
  }
  return ({ weight, role, layer, expert }) =>
    widthFormat(bits.get(keyOf(weight.name, role, layer, expert)) as QuantizedBits, options);
}

/** Experts have other names when they are renumbered. */
function keyOf(name: string, role: string, layer: number | undefined, expert: number | undefined): string {
  return expert === undefined ? name : `${layer} ${expert} ${role}`;
}

/** The plan that drops what the choice drops; undefined when nothing is. */
export function droppingPlan(model: MoeModel, { dropped }: ChosenWidths): Plan | undefined {
  if (dropped.length === 0) return undefined;
  return createPlan(
    model,
    moeLayers(model).map(({ index, feedForward }) => {
      const gone = dropped.find(({ layer }) => layer === index)?.experts ?? [];
      return {
        layer: index,
        experts: feedForward.experts.map((_, expert) => expert).filter((expert) => !gone.includes(expert)),
      };
    }),
  );
}
