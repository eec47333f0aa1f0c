import { createPlan, type LayerPlan, type MoeModel, moeLayers, type Plan, Rng } from "@coppice/core";

/** Keeps a random half of the experts (never fewer than the top-k) of every MoE layer, slots in random order. */
export function prunedPlan(model: MoeModel, seed: number): Plan {
  const rng = Rng.fromSeed(seed);
  return planOf(model, (experts, topK) => ({ experts: rng.sample(experts, half(experts, topK)) }));
}

/** As `prunedPlan`, with slots that are their expert plus a little of all others, as EEP's merge phase makes them. */
export function mergedPlan(model: MoeModel, seed: number): Plan {
  const rng = Rng.fromSeed(seed);
  return planOf(model, (experts, topK) => {
    const kept = rng.sample(experts, half(experts, topK));
    return { experts: kept, merge: nearOneHot(rng, kept, experts) };
  });
}

/** Prunes, merges, and maps the router's probabilities by a real-valued matrix. */
export function mappedPlan(model: MoeModel, seed: number): Plan {
  const rng = Rng.fromSeed(seed);
  return planOf(model, (experts, topK) => {
    const kept = rng.sample(experts, half(experts, topK));
    return {
      experts: kept,
      merge: nearOneHot(rng, kept, experts),
      routerMap: nearOneHot(rng, kept, experts),
    };
  });
}

/** All experts, but only one per token. */
export function topOnePlan(model: MoeModel): Plan {
  return planOf(model, (experts) => ({ experts: Array.from({ length: experts }, (_, i) => i), topK: 1 }));
}

/** A different treatment in every layer, and the last layer untouched. */
export function mixedPlan(model: MoeModel, seed: number): Plan {
  const plans = [prunedPlan(model, seed), mergedPlan(model, seed + 1), topOnePlan(model)];
  const layers = moeLayers(model).slice(0, -1);
  return createPlan(
    model,
    layers.map(({ index }, i) => plans[i % 3]?.layers.find(({ layer }) => layer === index) as LayerPlan),
  );
}

function planOf(model: MoeModel, make: (experts: number, topK: number) => Omit<LayerPlan, "layer">): Plan {
  return createPlan(
    model,
    moeLayers(model).map(({ index, feedForward: { experts, router } }) => ({
      layer: index,
      ...make(experts.length, router.topK),
    })),
  );
}

function half(experts: number, topK: number): number {
  return Math.max(topK, Math.ceil(experts / 2));
}

function nearOneHot(rng: Rng, kept: readonly number[], experts: number): number[][] {
  return kept.map((expert) =>
    Array.from({ length: experts }, (_, j) => (j === expert ? 1 : 0) + 0.15 * rng.normal()),
  );
}
