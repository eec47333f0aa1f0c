import { createPlan, moeLayers, Rng } from "@coppice/core";

/** Batches of up to 8 plans: a third keep other experts, a third are children of those, a third merge in one more layer. */
export function searchPlans(model, most, keep) {
  const rng = Rng.fromSeed(7);
  const layers = moeLayers(model);
  const below = (n) => Math.min(n - 1, Math.floor(n * rng.uniform()));
  const pruned = ({ index, feedForward }) => {
    const left = feedForward.experts.map((_, i) => i);
    return {
      layer: index,
      experts: Array.from({ length: keep }, () => left.splice(below(left.length), 1)[0]).sort(
        (a, b) => a - b,
      ),
    };
  };
  const merged = (layer, { feedForward }) => ({
    ...layer,
    merge: layer.experts.map((expert) =>
      feedForward.experts.map((_, i) => (i === expert ? 1 : rng.uniform() < 0.5 ? 0.1 * rng.uniform() : 0)),
    ),
  });
  const made = Array.from({ length: Math.ceil(most / 3) }, () => layers.map(pruned));
  while (made.length < most) {
    const parent = made[Math.max(0, made.length - 1 - below(16))];
    const at = below(layers.length);
    const change = made.length < (2 * most) / 3 ? () => pruned(layers[at]) : (own) => merged(own, layers[at]);
    made.push(parent.map((layer, i) => (i === at ? change(layer) : layer)));
  }
  const plans = made.map((all) => createPlan(model, all));
  return Array.from({ length: Math.ceil(most / 8) }, (_, i) => plans.slice(8 * i, 8 * i + 8));
}
