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
  Rng,
  type SkipRule,
  selectExperts,
  type TensorRef,
  type UnitSource,
} from "@coppice/core";
import type { MemoryModel } from "./memory-model.js";

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

/**
 * Prunes, and puts slots together unit by unit: some from experts whose units are permuted and weighted one by one, some
 * from their expert and units of another that share targets or are dropped, some not. In every other layer what is not
 * put together so, down biases too, is merged.
 */
export function alignedPlan(model: MoeModel, seed: number): Plan {
  const rng = Rng.fromSeed(seed);
  return planOf(model, (spec, layer) => {
    const kept = randomHalf(rng, spec);
    const experts = spec.experts.length;
    const unitsOf = [permutedUnits, () => null, segmentUnits];
    return {
      experts: kept,
      ...(layer % 2 === 0 && { merge: nearOneHot(rng, kept, experts) }),
      units: kept.map((expert, slot) => unitsOf[(slot + layer) % 3]?.(rng, spec, expert) ?? null),
    };
  });
}

/** Prunes, and gives the router rows that are near those of the kept experts; its biases and corrections in every other layer. */
export function repairedPlan({ model, tensors }: MemoryModel, seed: number): Plan {
  const rng = Rng.fromSeed(seed);
  return planOf(model, (spec, layer) => {
    const kept = randomHalf(rng, spec);
    const near = (ref: TensorRef) => {
      const values = tensors.get(ref.name) as Float32Array;
      const size = values.length / spec.experts.length;
      const rows = kept.flatMap((expert) => [...values.subarray(expert * size, (expert + 1) * size)]);
      return rows.map((value) => value + 0.1 * rng.normal());
    };
    const { weight, bias, correction } = spec.router;
    return {
      experts: kept,
      router: {
        weight: packFloats(Float32Array.from(near(weight))),
        ...(bias && layer % 2 === 0 && { bias: near(bias) }),
        ...(correction && layer % 2 === 0 && { correction: near(correction) }),
      },
    };
  });
}

/**
 * Prunes, and changes the down projections of all slots but the first; in every other layer those of merged slots, of which
 * some are put together unit by unit.
 */
export function refitPlan(model: MoeModel, seed: number): Plan {
  const rng = Rng.fromSeed(seed);
  return planOf(model, (spec, layer) => {
    const kept = randomHalf(rng, spec);
    return {
      experts: kept,
      ...(layer % 2 === 0 && {
        merge: nearOneHot(rng, kept, spec.experts.length),
        units: kept.map((expert, slot) => (slot % 2 === 0 ? permutedUnits(rng, spec, expert) : null)),
      }),
      down: downChanges(rng, spec, kept.length),
    };
  });
}

function downChanges(rng: Rng, { experts }: MoeSpec, slots: number): string {
  const size = elementCount((experts[0] as MlpSpec).down.shape);
  const value = (_: number, i: number) => (i < size ? 0 : 0.05 * rng.normal());
  return packBfloat16(Float32Array.from({ length: slots * size }, value));
}

/** All experts, of which tokens skip some. */
export function skippingPlan(model: MoeModel, skip: SkipRule): Plan {
  return planOf(model, ({ experts }) => ({ experts: experts.map((_, i) => i), skip }));
}

/** Rules that skip some of the choices of random models. */
export const sampleRules = {
  ratio: { rule: "ratio", threshold: 0.7 },
  "top-p": { rule: "top-p", threshold: 0.7 },
  spare: { rule: "ratio", threshold: 0.95, spare: 0.35 },
} as const satisfies Record<string, SkipRule>;

/** Pruning, merges by unit, changed down projections, router rows and rules for skipped experts together, layer by layer another rule. */
export function everythingPlan(loaded: MemoryModel, seed: number): Plan {
  const { model } = loaded;
  const rules = Object.values(sampleRules);
  const repaired = repairedPlan(loaded, seed);
  return createPlan(
    model,
    repaired.layers.map((layer, i) => {
      const spec = moeLayers(model)[i]?.feedForward as MoeSpec;
      const rng = Rng.fromSeed(seed + i);
      return {
        ...layer,
        units: layer.experts.map((expert) => permutedUnits(rng, spec, expert)),
        down: downChanges(rng, spec, layer.experts.length),
        skip: rules[(i + 1) % 3] as SkipRule,
      };
    }),
  );
}

/** Whether plans for the model may have router maps. */
export function acceptsMaps(model: MoeModel): boolean {
  return moeLayers(model).every(({ feedForward: { router } }) => {
    return router.order === "softmax-topk" && !router.correction && !router.groups && !router.skip;
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

function planOf(model: MoeModel, make: (spec: MoeSpec, layer: number) => Omit<LayerPlan, "layer">): Plan {
  return createPlan(
    model,
    moeLayers(model).map(({ index, feedForward }) => ({ layer: index, ...make(feedForward, index) })),
  );
}

/** The expert and two others, units permuted, with a factor for each. */
function permutedUnits(rng: Rng, { experts }: MoeSpec, expert: number): UnitSource[] {
  const { width } = experts[expert] as MlpSpec;
  const factors = (mean: number) => Array.from({ length: width }, () => mean + 0.1 * rng.normal());
  return others(rng, experts.length, expert, 2).map((source) => ({
    expert: source,
    to: source === expert ? Array.from({ length: width }, (_, i) => i) : rng.sample(width, width),
    rows: factors(source === expert ? 0.7 : 0.2),
    columns: factors(source === expert ? 0.7 : 0.2),
  }));
}

/** The expert as it is, and units of another that share targets or are dropped. */
function segmentUnits(rng: Rng, { experts }: MoeSpec, expert: number): UnitSource[] {
  const { width } = experts[expert] as MlpSpec;
  return others(rng, experts.length, expert, 1).map((source) => ({
    expert: source,
    to: Array.from({ length: width }, (_, i) => (source === expert ? i : rng.integer(width + 1) - 1)),
    rows: source === expert ? 1 : 0.15,
    columns: source === expert ? 1 : 0.15,
  }));
}

/** The expert and up to `count` others, ascending. */
function others(rng: Rng, experts: number, expert: number, count: number): number[] {
  const chosen = rng.sample(experts, Math.min(experts, count + 1)).filter((other) => other !== expert);
  return [expert, ...chosen.slice(0, count)].sort((a, b) => a - b);
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
