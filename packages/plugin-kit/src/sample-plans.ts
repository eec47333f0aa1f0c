import {
  createPlan,
  type LayerPlan,
  type MoeModel,
  type MoeSpec,
  moeLayers,
  type Plan,
  Rng,
  selectExperts,
} from "@coppice/core";

/** Keeps a random half of the experts (never fewer than the top-k) of every MoE layer, slots in random order. */
export function prunedPlan(model: MoeModel, seed: number): Plan {
  const rng = Rng.fromSeed(seed);
  return planOf(model, (spec) => ({ experts: randomHalf(rng, spec) }));
}

/** As `prunedPlan`, with slots that are their expert plus a little of all others, as EEP's merge phase makes them. */
export function mergedPlan(model: MoeModel, seed: number): Plan {
  const rng = Rng.fromSeed(seed);
  return planOf(model, (spec) => {
    const kept = randomHalf(rng, spec);
    return { experts: kept, merge: nearOneHot(rng, kept, spec.experts.length) };
  });
}

/** Prunes, merges, and maps the router's probabilities by a real-valued matrix. */
export function mappedPlan(model: MoeModel, seed: number): Plan {
  const rng = Rng.fromSeed(seed);
  return planOf(model, (spec) => {
    const kept = randomHalf(rng, spec);
    const experts = spec.experts.length;
    return {
      experts: kept,
      merge: nearOneHot(rng, kept, experts),
      routerMap: nearOneHot(rng, kept, experts),
    };
  });
}

/** Whether plans for the model may have router maps. */
export function acceptsMaps(model: MoeModel): boolean {
  return moeLayers(model).every(({ feedForward: { router } }) => {
    return router.order === "softmax-topk" && !router.correction && !router.groups;
  });
}

/** All experts, but only one per token. */
export function topOnePlan(model: MoeModel): Plan {
  return planOf(model, ({ experts }) => ({ experts: experts.map((_, i) => i), topK: 1 }));
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

function planOf(model: MoeModel, make: (spec: MoeSpec) => Omit<LayerPlan, "layer">): Plan {
  return createPlan(
    model,
    moeLayers(model).map(({ index, feedForward }) => ({ layer: index, ...make(feedForward) })),
  );
}

/** Experts of routers with groups fit the groups. */
function randomHalf(rng: Rng, spec: MoeSpec): number[] {
  const { experts, router } = spec;
  const half = Math.max(router.topK, Math.ceil(experts.length / 2));
  if (!router.groups) return rng.sample(experts.length, half);
  const scores = experts.map(() => rng.uniform());
  const kept = selectExperts(spec, scores, half, 0);
  return rng.sample(half, half).map((i) => kept[i] as number);
}

function nearOneHot(rng: Rng, kept: readonly number[], experts: number): number[][] {
  return kept.map((expert) =>
    Array.from({ length: experts }, (_, j) => (j === expert ? 1 : 0) + 0.15 * rng.normal()),
  );
}
