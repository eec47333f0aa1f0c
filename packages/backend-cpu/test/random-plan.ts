import {
  createPlan,
  elementCount,
  type LayerPlan,
  type MlpSpec,
  type MoeModel,
  type MoeSpec,
  moeLayers,
  type Plan,
  packBfloat16,
  packFloats,
  type Rng,
  type RouterRows,
  type SkipRule,
  type UnitSource,
} from "@coppice/core";

/**
 * Any valid plan: some layers left out, slots in any order, merges by matrix and by unit, changed down projections,
 * router maps where they are possible or router rows and rules for skipped experts, other top-k.
 */
export function randomPlan(model: MoeModel, rng: Rng): Plan {
  const layers: LayerPlan[] = [];
  for (const { index, feedForward } of moeLayers(model)) {
    if (rng.bernoulli(0.2)) continue;
    const total = feedForward.experts.length;
    const { order, correction } = feedForward.router;
    const mapped = order === "softmax-topk" && !correction && rng.bernoulli(0.3);
    const slots = 1 + rng.integer(total);
    const kept = rng.sample(total, slots);
    const near = () => (rng.bernoulli(0.5) ? 0 : 0.2 * rng.normal());
    const rows = () =>
      kept.map((own) => Array.from({ length: total }, (_, j) => (j === own ? 1 : 0) + near()));
    layers.push({
      layer: index,
      experts: kept,
      topK: 1 + rng.integer(Math.min(slots, 3)),
      ...(rng.bernoulli(0.5) && { merge: rows() }),
      ...(rng.bernoulli(0.4) && { units: kept.map(() => randomUnits(rng, feedForward)) }),
      ...(rng.bernoulli(0.4) && { down: randomDown(rng, feedForward, slots) }),
      ...(mapped && { routerMap: rows() }),
      ...(!mapped && rng.bernoulli(0.4) && { router: randomRouter(rng, feedForward, slots) }),
      ...(!mapped && rng.bernoulli(0.5) && { skip: randomRule(rng) }),
    });
  }
  return createPlan(model, layers);
}

function randomUnits(rng: Rng, { experts }: MoeSpec): UnitSource[] | null {
  if (rng.bernoulli(0.3)) return null;
  const width = experts[0]?.width ?? 0;
  const factors = () =>
    rng.bernoulli(0.5) ? 0.5 : Array.from({ length: width }, () => 0.5 + 0.1 * rng.normal());
  const sources = rng.sample(experts.length, 1 + rng.integer(2)).sort((a, b) => a - b);
  return sources.map((expert) => ({
    expert,
    to: Array.from({ length: width }, () => rng.integer(width + 1) - 1),
    rows: factors(),
    columns: factors(),
  }));
}

function randomDown(rng: Rng, { experts }: MoeSpec, slots: number): string {
  const size = elementCount((experts[0] as MlpSpec).down.shape);
  const scales = Array.from({ length: slots }, () => (rng.bernoulli(0.3) ? 0 : 0.1));
  const values = scales.flatMap((scale) => Array.from({ length: size }, () => scale * rng.normal()));
  return packBfloat16(Float32Array.from(values));
}

function randomRouter(rng: Rng, { router }: MoeSpec, slots: number): RouterRows {
  const hidden = router.weight.shape[1] as number;
  const values = (count: number, scale: number) => Array.from({ length: count }, () => scale * rng.normal());
  return {
    weight: packFloats(Float32Array.from(values(slots * hidden, 0.5))),
    ...(router.bias && rng.bernoulli(0.5) && { bias: values(slots, 0.3) }),
    ...(router.correction && rng.bernoulli(0.5) && { correction: values(slots, 0.1) }),
  };
}

function randomRule(rng: Rng): SkipRule {
  return {
    rule: rng.bernoulli(0.5) ? "ratio" : "top-p",
    threshold: 0.3 + 0.6 * rng.uniform(),
    ...(rng.bernoulli(0.6) && { spare: 0.6 * rng.uniform() }),
  };
}
