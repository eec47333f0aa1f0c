import {
  type LayerPlan,
  type MoeModel,
  type MoeSpec,
  moeLayers,
  type Plan,
  Rng,
  type RouterSpec,
} from "@coppice/core";
import { toyModel } from "@coppice/plugin-kit";

/** `model` with other routers. */
export function withRouters(
  model: MoeModel,
  change: (router: RouterSpec, index: number) => RouterSpec,
): MoeModel {
  return {
    ...model,
    fingerprint: `${model.fingerprint}-changed`,
    layers: model.layers.map((layer) => {
      if (layer.feedForward.kind !== "moe") return layer;
      const feedForward: MoeSpec = {
        ...layer.feedForward,
        router: change(layer.feedForward.router, layer.index),
      };
      return { ...layer, feedForward };
    }),
  };
}

/** A toy model of 2 layers whose routers choose among `count` groups, of which a token may use `keep`. */
export function groupedModel(count: number, keep: number, experts = 8): MoeModel {
  return withRouters(toyModel({ layers: 2, experts }), (router) => ({
    ...router,
    groups: { count, keep, score: "max" },
  }));
}

/**
 * More experts and more of them per token help, each less than the one before, and some experts only together: a front
 * with many plans of different sizes.
 */
export function richLandscape(model: MoeModel, seed: number): (plan: Plan) => number {
  const rng = Rng.fromSeed(2000 + seed);
  const layers = moeLayers(model);
  const worth = layers.map(({ feedForward }) => feedForward.experts.map(() => rng.uniform()));
  const pairs = layers.map(({ feedForward }) =>
    feedForward.experts.map(() => feedForward.experts.map(() => 0.3 * rng.normal())),
  );
  return (plan) => {
    const entries = new Map<number, LayerPlan>(plan.layers.map((entry) => [entry.layer, entry]));
    return layers.reduce((sum, { index, feedForward }, row) => {
      const entry = entries.get(index);
      const kept = entry?.experts ?? feedForward.experts.map((_, expert) => expert);
      const topK = entry?.topK ?? feedForward.router.topK;
      let value = 0.2 * Math.sqrt(topK);
      for (const i of kept) {
        value += worth[row]?.[i] as number;
        for (const j of kept) if (i < j) value += pairs[row]?.[i]?.[j] as number;
      }
      return sum + Math.tanh(value / 2);
    }, 0);
  };
}

/** All subsets of the numbers below `total` with `least` to `most` members. */
export function allSubsets(total: number, least: number, most = total): number[][] {
  return Array.from({ length: 2 ** total }, (_, mask) =>
    Array.from({ length: total }, (_, i) => i).filter((i) => (mask >> i) & 1),
  ).filter(({ length }) => length >= least && length <= most);
}
