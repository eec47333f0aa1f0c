import {
  CoppiceError,
  findExperts,
  type MoeLayer,
  type MoeModel,
  moeLayers,
  type Statistics,
} from "@coppice/core";

/** What is lost when a number of experts is kept. */
export interface DroppedPoint {
  readonly keep: number;
  /** Probability that the router gave to the others, averaged over tokens: 0 to 1. */
  readonly dropped: number;
}

export interface DroppedProbability {
  /** One per MoE layer; points by ascending number kept. */
  readonly layers: readonly { readonly layer: number; readonly points: readonly DroppedPoint[] }[];
  /** Means over all layers, at the numbers that every layer can keep. */
  readonly overall: readonly DroppedPoint[];
}

/**
 * The probability mass that pruning by `scores` drops, `1 - Σ_kept p_j` with p_j the mean over the tokens of the
 * softmax probability of expert j, against the number of experts kept: from the top-k to all, as far as the router's
 * groups allow (`selectExperts`). Scored by p itself it is the least that can be dropped.
 * @param scores one row per MoE layer, one score per expert
 * @throws COPPICE_STATS_MODEL when scores and statistics are not of the same layers
 */
export function droppedProbability(
  model: MoeModel,
  statistics: Statistics,
  scores: readonly ArrayLike<number>[],
): DroppedProbability {
  const layers = moeLayers(model).map((layer, i) => {
    const sums = statistics.layers[i];
    const row = scores[i];
    const experts = layer.feedForward.experts.length;
    if (sums?.layer !== layer.index || sums.count.length !== experts || row?.length !== experts) {
      throw new CoppiceError(
        "COPPICE_STATS_MODEL",
        `layer ${layer.index} has ${experts} experts; its scores have ${row?.length ?? "none"}, and the statistics ` +
          `have ${sums ? `${sums.count.length} in layer ${sums.layer}` : "no such layer"}`,
      );
    }
    return { layer: layer.index, points: curve(layer, sums.probability, row) };
  });
  const [first, ...others] = layers.map(({ points }) => new Map(points.map((point) => [point.keep, point])));
  const overall = [...(first?.keys() ?? [])].flatMap((keep) => {
    const at = [first, ...others].map((points) => points?.get(keep)?.dropped);
    const known = at.filter((dropped) => dropped !== undefined);
    if (known.length < layers.length) return [];
    return { keep, dropped: known.reduce((sum, dropped) => sum + dropped, 0) / known.length };
  });
  return { layers, overall };
}

function curve(
  { index, feedForward }: MoeLayer,
  probability: Float64Array,
  scores: ArrayLike<number>,
): DroppedPoint[] {
  const total = probability.reduce((sum, value) => sum + value, 0);
  const points: DroppedPoint[] = [];
  for (let keep = feedForward.router.topK; keep <= probability.length; keep++) {
    const kept = findExperts(feedForward, scores, keep, index);
    if (!kept) continue;
    const dropped = new Set(probability.keys());
    for (const expert of kept) dropped.delete(expert);
    const mass = [...dropped].reduce((sum, expert) => sum + (probability[expert] as number), 0);
    points.push({ keep, dropped: mass / total });
  }
  return points;
}
