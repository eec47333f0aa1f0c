import { type MoeModel, moeLayers, type Plan, Rng } from "@coppice/core";
import { toyModel } from "@coppice/plugin-kit";

/** A toy model whose routers choose among `count` groups, of which a token may use `keep`. */
export function groupedModel(
  count: number,
  keep: number,
  experts = 8,
  score: "max" | "top2" = "max",
): MoeModel {
  const model = toyModel({ layers: 2, experts });
  return {
    ...model,
    fingerprint: `${model.fingerprint}-groups`,
    layers: model.layers.map((layer) =>
      layer.feedForward.kind === "moe"
        ? {
            ...layer,
            feedForward: {
              ...layer.feedForward,
              router: { ...layer.feedForward.router, groups: { count, keep, score } },
            },
          }
        : layer,
    ),
  };
}

/**
 * Experts matter alone, in pairs of one layer and across neighbouring layers, so that neither single experts nor
 * single layers can be judged apart.
 */
export function ruggedLandscape(model: MoeModel, seed: number): (plan: Plan) => number {
  const rng = Rng.fromSeed(1000 + seed);
  const layers = moeLayers(model);
  const table = (size: number, scale: number) =>
    Array.from({ length: size }, () => Array.from({ length: size }, () => scale * rng.normal()));
  const size = Math.max(...layers.map(({ feedForward }) => feedForward.experts.length));
  const alone = layers.map(() => Array.from({ length: size }, () => rng.normal()));
  const pairs = layers.map(() => table(size, 0.4));
  const across = layers.map(() => table(size, 0.25));
  return (plan) => {
    const kept = layers.map(
      ({ index, feedForward }) =>
        plan.layers.find(({ layer }) => layer === index)?.experts ?? feedForward.experts.map((_, e) => e),
    );
    let total = 0;
    kept.forEach((subset, l) => {
      for (const i of subset) {
        total += alone[l]?.[i] as number;
        for (const j of subset) if (i < j) total += pairs[l]?.[i]?.[j] as number;
        for (const j of kept[l + 1] ?? []) total += across[l]?.[i]?.[j] as number;
      }
    });
    return total;
  };
}

/** All subsets of `count` of the numbers below `total`, by bit masks. */
export function allSubsets(total: number, count: number): number[][] {
  const found: number[][] = [];
  for (let mask = 0; mask < 2 ** total; mask++) {
    const subset = Array.from({ length: total }, (_, i) => i).filter((i) => (mask >> i) & 1);
    if (subset.length === count) found.push(subset);
  }
  return found;
}
