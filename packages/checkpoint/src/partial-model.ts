import {
  CoppiceError,
  canonicalPlan,
  type DecoderLayer,
  elementCount,
  groupsAfter,
  type LayerPlan,
  type LoadRequest,
  type MlpSpec,
  type MoeModel,
  type MoeSpec,
  moeLayers,
  type Plan,
  parsePlan,
  planKey,
  type RouterSpec,
  skipRuleOf,
  storedRouterRows,
  type TensorRef,
  type WeightReader,
} from "@coppice/core";
import { lineage } from "./output/provenance.js";

/** A model of some experts of another one, for a backend to load. */
export interface PartialModel extends Pick<LoadRequest, "model" | "weights"> {
  /**
   * The smaller model. Its fingerprint is another than the whole model's and the same for equal plans, so plans and
   * statistics of the two are not taken for one another's.
   */
  readonly model: MoeModel;
  /** Reads the tensors of this model and those of the whole one, the rows of all experts of its routers among them. */
  readonly weights: WeightReader;
  /** Layer index -> expert of the whole model in every slot, ascending; all layers with experts. */
  readonly experts: ReadonlyMap<number, readonly number[]>;
}

/**
 * The experts that a plan keeps as a model of its own, so that whoever loads it reads no byte of the others and needs no
 * memory for them: the same computation as the whole model under the plan. Router rows are gathered when they are read.
 * @param plan for `model`; layers that it does not list keep all experts. Router rows, top-k and skip rules apply
 * @throws COPPICE_PLAN_INVALID for merges, changes and router maps, which need more than the experts that are kept, and others of
 * `parsePlan`; COPPICE_PLAN_GROUPS
 */
export function partialModel(model: MoeModel, weights: WeightReader, plan: Plan): PartialModel {
  const canonical = canonicalPlan(parsePlan(plan, model), model);
  const plans = new Map(canonical.layers.map((layer) => [layer.layer, layer]));
  const experts = new Map(
    moeLayers(model).map(({ index, feedForward }) => [
      index,
      plans.get(index)?.experts ?? feedForward.experts.map((_, expert) => expert),
    ]),
  );
  if (plans.size === 0) return { model, weights, experts };
  const gathered = new Map<string, Gathered>();
  const layers = model.layers.map((layer): DecoderLayer => {
    const entry = plans.get(layer.index);
    if (!entry || layer.feedForward.kind !== "moe") return layer;
    return { ...layer, feedForward: keepExperts(layer.feedForward, entry, gathered) };
  });
  return {
    model: { ...model, fingerprint: planKey(canonical, model), derivedFrom: lineage(model), layers },
    weights: gatheringReader(weights, gathered),
    experts,
  };
}

/** Rows of a router's tensor that a plan keeps. */
interface Gathered {
  readonly whole: TensorRef;
  readonly experts: readonly number[];
  /** In place of the rows as they are stored. */
  readonly values: Float32Array | undefined;
}

function keepExperts(spec: MoeSpec, entry: LayerPlan, gathered: Map<string, Gathered>): MoeSpec {
  const { experts, merge, routerMap, units, down, topK = spec.router.topK } = entry;
  if (merge || routerMap || units || down !== undefined) {
    const has = routerMap ? "a router map" : merge || units ? "merged experts" : "changed down projections";
    throw new CoppiceError(
      "COPPICE_PLAN_INVALID",
      `layer ${entry.layer} has ${has}; a partial model holds experts as they are`,
      { hint: "write the plan as a checkpoint, or give a plan that only keeps experts" },
    );
  }
  const values = entry.router && storedRouterRows(entry.router, spec.router);
  const rowsOf = (whole: TensorRef, own: Float32Array | undefined): TensorRef => {
    const name = `${whole.name}[kept]`;
    gathered.set(name, { whole, experts, values: own });
    return { ...whole, name, shape: [experts.length, ...whole.shape.slice(1)] };
  };
  const { weight, bias, correction, groups: _, skip: __, ...routing } = spec.router;
  const groups = groupsAfter({ ...spec.router, topK }, experts, entry.layer);
  const skip = skipRuleOf(spec.router, entry);
  const router: RouterSpec = {
    ...routing,
    topK,
    weight: rowsOf(weight, values?.weight),
    ...(bias && { bias: rowsOf(bias, values?.bias) }),
    ...(correction && { correction: rowsOf(correction, values?.correction) }),
    ...(groups && { groups }),
    ...(skip && { skip }),
  };
  return { ...spec, router, experts: experts.map((expert) => spec.experts[expert] as MlpSpec) };
}

function gatheringReader(weights: WeightReader, gathered: ReadonlyMap<string, Gathered>): WeightReader {
  return {
    async readQuantized(ref, options) {
      return gathered.has(ref.name) ? undefined : weights.readQuantized?.(ref, options);
    },
    async read(ref, options = {}) {
      const rows = gathered.get(ref.name);
      if (!rows) return weights.read(ref, options);
      const { into = new Float32Array(elementCount(ref.shape)), signal } = options;
      if (rows.values) {
        into.set(rows.values);
        return into;
      }
      const whole = await weights.read(rows.whole, signal ? { signal } : {});
      const size = into.length / rows.experts.length;
      rows.experts.forEach((expert, slot) => {
        into.set(whole.subarray(expert * size, (expert + 1) * size), slot * size);
      });
      return into;
    },
  };
}
