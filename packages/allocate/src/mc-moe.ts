import { CoppiceError, type MoeLayer, type MoeModel, moeLayers } from "@coppice/core";
import type { BitAllocation } from "./allocate-bits.js";
import { allocateUnits, type UnitOption } from "./allocate-units.js";
import { checkModel, type ExpertLoss, type Sensitivity } from "./sensitivity.js";

export interface McMoeOptions {
  readonly model: MoeModel;
  readonly sensitivity: Sensitivity;
  /** Bytes that a matrix takes with so many bits per weight, for the sum. */
  bytes(name: string, bits: number): number;
  /** Bits per expert on average, the same in every layer; the paper has 1.5 to 2.5. */
  readonly average: number;
  /** Widths of experts; 0 drops them. At least one expert of a layer gets each of the two largest. @default those measured */
  readonly widths?: readonly number[];
  /** Bits of all other matrices. @default 4 */
  readonly others?: number;
  /** Exponent of how often an expert is chosen. @default 1 */
  readonly alpha?: number;
  /** Exponent of its gate weights. @default 1.5 */
  readonly beta?: number;
  /** Exponent of its error. @default 2 */
  readonly gamma?: number;
}

interface ExpertOption extends UnitOption {
  readonly bits: number;
}

/**
 * Bits of experts by the program of MC-MoE (arXiv 2410.06270, pre-loading mixed-precision quantization): in every layer
 *
 *     minimise  Σ_j φ_j^α w_j^β ε_j,b^γ   with  Σ_j b_j <= average × experts,
 *
 * one width per expert, and at least one expert of each of the two largest widths. φ is an expert's share of the choices, w that of
 * the gate weights, ε_b the Frobenius norm of what the layer's output changes when this expert alone has b bits: the root of
 * the sum of its matrices' errors. Its authors have widths of 1, 2 and 3 bits and use a solver of integer programs; their code
 * raises ε to α, their paper to γ, which is what is done here. With 0 among the widths pruning is part of it, ε then
 * being what dropping the expert changes; a layer keeps at least its top-k.
 * @throws COPPICE_PLAN_KEEP when the average is too small, COPPICE_STATS_MODEL, COPPICE_USAGE for widths that were not measured
 */
export function allocateMcMoe(options: McMoeOptions): BitAllocation {
  const { model, sensitivity, others = 4 } = options;
  checkModel(model, sensitivity);
  const bits = new Map<string, number>();
  const dropped: { layer: number; experts: number[] }[] = [];
  let [loss, bound, optimal] = [0, 0, true];
  for (const layer of moeLayers(model)) {
    const found = allocateLayer(layer, options);
    loss += found.loss;
    bound += found.bound;
    optimal &&= found.optimal;
    const chosen = found.groups[0] ?? [];
    for (const { name, layer: own, expert } of sensitivity.matrices) {
      if (own === layer.index && expert !== undefined) bits.set(name, (chosen[expert] as ExpertOption).bits);
    }
    const experts = Array.from(chosen.keys()).filter((expert) => chosen[expert]?.bits === 0);
    if (experts.length > 0) dropped.push({ layer: layer.index, experts });
  }
  const matrices = sensitivity.matrices.map(({ name }) => ({ name, bits: bits.get(name) ?? others }));
  const bytes = matrices.reduce(
    (sum, one) => sum + (one.bits === 0 ? 0 : options.bytes(one.name, one.bits)),
    0,
  );
  return { matrices, dropped, bytes, loss, bound, optimal };
}

function allocateLayer({ index, feedForward }: MoeLayer, options: McMoeOptions) {
  const { sensitivity, average } = options;
  const measured = [
    ...new Set(sensitivity.matrices.flatMap((matrix) => matrix.widths.map(({ bits }) => bits))),
  ];
  const widths = [...(options.widths ?? measured)].sort((a, b) => b - a);
  const experts = sensitivity.experts.filter(({ layer }) => layer === index);
  const budget = Math.floor(average * experts.length + 1e-9);
  const { topK } = feedForward.router;
  checkAverage(widths, { budget, topK, experts: experts.length, layer: index });
  return allocateUnits<ExpertOption>(
    [
      {
        name: `the experts of layer ${index}`,
        units: experts.map((expert) =>
          widths.map((bits) => ({ bits, bytes: bits, loss: weighedError(expert, bits, options) })),
        ),
        rules: [
          { counts: ({ bits }) => bits > 0, least: topK },
          ...widths.slice(0, 2).map((width) => ({
            counts: ({ bits }: ExpertOption) => bits === width,
            least: 1,
          })),
        ],
      },
    ],
    { budget },
  );
}

/** @param widths descending */
function checkAverage(
  widths: readonly number[],
  { budget, topK, experts, layer }: { budget: number; topK: number; experts: number; layer: number },
): void {
  const largest = widths.slice(0, 2);
  const smallest = widths.at(-1) ?? 0;
  const smallestKept = widths.findLast((bits) => bits > 0) ?? 0;
  const kept = Math.max(largest.length, topK);
  const least =
    largest.reduce((sum, bits) => sum + bits, 0) +
    (kept - largest.length) * smallestKept +
    (experts - kept) * smallest;
  if (least <= budget) return;
  throw new CoppiceError(
    "COPPICE_PLAN_KEEP",
    `the ${experts} experts of layer ${layer} have ${budget} bits to share; one with each of ${largest.join(" and ")} and ` +
      `the others with ${smallestKept === smallest ? smallest : `${smallestKept} or ${smallest}`} take ${least}`,
    { hint: `give an average of at least ${least / experts}, or other widths`, details: { least, budget } },
  );
}

/** φ^α w^β ε^γ */
function weighedError(expert: ExpertLoss, bits: number, options: McMoeOptions): number {
  const { alpha = 1, beta = 1.5, gamma = 2 } = options;
  const squares = bits === 0 ? expert.dropped?.error : quantizedError(expert, bits, options.sensitivity);
  if (squares === undefined) {
    const where = `expert ${expert.expert} of layer ${expert.layer}`;
    throw new CoppiceError(
      "COPPICE_USAGE",
      bits === 0 ? `${where} cannot be dropped by itself` : `${where} was not measured with ${bits} bits`,
    );
  }
  return expert.share ** alpha * expert.gateShare ** beta * Math.sqrt(squares) ** gamma;
}

/** Sum of the errors of the expert's matrices. */
function quantizedError(
  { layer, expert }: ExpertLoss,
  width: number,
  { matrices }: Sensitivity,
): number | undefined {
  let sum = 0;
  for (const matrix of matrices) {
    if (matrix.layer !== layer || matrix.expert !== expert) continue;
    const found = matrix.widths.find(({ bits }) => bits === width);
    if (found?.error === undefined) return undefined;
    sum += found.error;
  }
  return sum;
}
