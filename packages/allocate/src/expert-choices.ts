import {
  CoppiceError,
  findExperts,
  type MlpSpec,
  type MoeLayer,
  type MoeModel,
  mlpTensors,
  moeLayers,
  routerTensors,
  storedBytes,
} from "@coppice/core";
import type { LayerChoices, LayerOption } from "./allocate.js";

export interface ExpertChoicesOptions {
  /**
   * How scores of different layers are made comparable: as they are (`none`), or divided by the `sum` or by the `max` of
   * their layer, as M-SMoE does with usage (arXiv 2310.01334). @default "none"
   */
  readonly normalize?: "none" | "sum" | "max";
  /** Fewest experts that a layer keeps; never fewer than its top-k. @default the top-k */
  readonly floor?: number;
  /** What a budget counts: experts, or the bytes of experts and of their router rows as they are stored. @default "experts" */
  readonly size?: "experts" | "bytes";
  /** False where a layer may not keep that number, for reasons of the export: see the documentation. @default all may */
  readonly allows?: (layer: MoeLayer, keep: number) => boolean;
}

/**
 * The numbers of experts that every MoE layer can keep, each at the cost of the scores that are dropped: from the floor
 * to all, as far as the router's groups allow (`selectExperts`). Allocating them is global pruning by a threshold with
 * a floor, and exact also where groups or `allows` leave gaps.
 *
 * Where there are negative scores, all are raised by as much, so that no layer is better off without an expert.
 * @param scores one row per MoE layer, one finite score per expert: the larger, the more it matters
 * @throws COPPICE_PLAN_INVALID when scores do not fit the model, COPPICE_PLAN_KEEP when a layer has no possible number
 */
export function expertChoices(
  model: MoeModel,
  scores: readonly ArrayLike<number>[],
  options: ExpertChoicesOptions = {},
): LayerChoices[] {
  const { normalize = "none", floor = 1, size = "experts", allows } = options;
  const layers = moeLayers(model);
  const rows = comparable(checked(layers, scores), normalize);
  return layers.map((layer, i) => {
    const row = rows[i] as Float64Array;
    const { feedForward, index } = layer;
    const total = row.reduce((sum, score) => sum + score, 0);
    const unit = size === "bytes" ? expertBytes(layer) : 1;
    const found: LayerOption[] = [];
    for (let count = Math.max(floor, feedForward.router.topK); count <= row.length; count++) {
      if (allows && !allows(layer, count)) continue;
      const kept = findExperts(feedForward, row, count, index);
      if (!kept) continue;
      const held = kept.reduce((sum, expert) => sum + (row[expert] as number), 0);
      found.push({ count, cost: count === row.length ? 0 : Math.max(0, total - held), size: count * unit });
    }
    if (found.length === 0) {
      throw new CoppiceError(
        "COPPICE_PLAN_KEEP",
        `layer ${index} has ${row.length} experts and can keep none of the numbers from ${floor} that are allowed`,
        { details: { layer: index, floor } },
      );
    }
    return { layer: index, options: found };
  });
}

/** Bytes that one expert and its router row take where they are stored. Experts of a layer are equal in size. */
export function expertBytes({ feedForward }: MoeLayer): number {
  const [expert] = feedForward.experts as [MlpSpec];
  const tensors = mlpTensors(expert).reduce((sum, ref) => sum + storedBytes(ref), 0);
  const router = routerTensors(feedForward).reduce((sum, ref) => sum + storedBytes(ref), 0);
  return Math.ceil(tensors + router / feedForward.experts.length);
}

function checked(layers: readonly MoeLayer[], scores: readonly ArrayLike<number>[]): Float64Array[] {
  if (scores.length !== layers.length) {
    throw new CoppiceError(
      "COPPICE_PLAN_INVALID",
      `scores have ${scores.length} layers, the model has ${layers.length} MoE layers`,
    );
  }
  return layers.map(({ index, feedForward }, i) => {
    const row = Float64Array.from(scores[i] as ArrayLike<number>);
    const experts = feedForward.experts.length;
    const bad = row.findIndex((score) => !Number.isFinite(score));
    if (row.length !== experts || bad >= 0) {
      throw new CoppiceError(
        "COPPICE_PLAN_INVALID",
        bad >= 0
          ? `the score of expert ${bad} of layer ${index} is ${row[bad]}, expected a finite number`
          : `layer ${index} has ${experts} experts and ${row.length} scores`,
      );
    }
    return row;
  });
}

function comparable(
  scores: readonly Float64Array[],
  normalize: NonNullable<ExpertChoicesOptions["normalize"]>,
): Float64Array[] {
  const least = Math.min(0, ...scores.map((row) => row.reduce((a, b) => Math.min(a, b), 0)));
  return scores.map((row) => {
    const raised = row.map((score) => score - least);
    if (normalize === "none") return raised;
    const whole = raised.reduce((a, b) => (normalize === "sum" ? a + b : Math.max(a, b)), 0);
    return whole === 0 ? raised : raised.map((score) => score / whole);
  });
}
