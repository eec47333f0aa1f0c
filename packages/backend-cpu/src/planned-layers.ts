import {
  type LayerPlan,
  type LayerRange,
  type MoeModel,
  type MoeSpec,
  type RouterRowValues,
  storedRouterRows,
  throwIfAborted,
} from "@coppice/core";
import type { MergeCache } from "./merge-cache.js";
import type { Feeds, Runtime } from "./sessions.js";
import type { LayerWeights, MlpWeights, ModelWeights, RouterWeights } from "./weights.js";

/** What an MoE layer computes under a plan. */
export interface PlannedExperts {
  readonly plan: LayerPlan | undefined;
  /** Inputs of the attention graph: `router` [slots, hidden], all rows under a router map, and `routerBias`. */
  readonly router: Feeds;
  /** [slots], the router's correction of the choice. */
  readonly correction: Float32Array | undefined;
  /** One per slot. */
  readonly slots: readonly MlpWeights[];
}

/** Works out what layers compute under plans. */
export class LayerPlanner {
  readonly #runtime: Runtime;
  readonly #model: MoeModel;
  readonly #weights: ModelWeights;
  readonly #merges: MergeCache;
  /** Plans do not change, so the router rows of one that runs often are unpacked once. */
  readonly #routers = new WeakMap<LayerPlan, RouterRowValues>();

  constructor(runtime: Runtime, model: MoeModel, weights: ModelWeights, merges: MergeCache) {
    this.#runtime = runtime;
    this.#model = model;
    this.#weights = weights;
    this.#merges = merges;
  }

  /** Experts of the layers of a range under plans, by layer; dense layers are absent. Merges what is not in the cache. */
  plan(
    { from, to }: LayerRange,
    plans: ReadonlyMap<number, LayerPlan>,
    signal: AbortSignal | undefined,
  ): Map<number, PlannedExperts> {
    const planned = new Map<number, PlannedExperts>();
    for (const { feedForward, index } of this.#model.layers.slice(from, to)) {
      if (feedForward.kind !== "moe") continue;
      throwIfAborted(signal, "merging experts");
      planned.set(index, this.#layer(index, feedForward, plans.get(index)));
    }
    return planned;
  }

  #layer(index: number, spec: MoeSpec, plan: LayerPlan | undefined): PlannedExperts {
    const { Tensor } = this.#runtime;
    const { hiddenSize } = this.#model;
    const { router, mlps } = this.#weights.layers.get(index) as LayerWeights & { router: RouterWeights };
    const { weight, bias, correction } = this.#router(spec, router, plan);
    return {
      plan,
      router: {
        router: new Tensor("float32", weight, [weight.length / hiddenSize, hiddenSize]),
        ...(bias && { routerBias: new Tensor("float32", bias, [bias.length]) }),
      },
      correction,
      slots: plan ? this.#slots(spec, mlps, plan) : mlps,
    };
  }

  #router(spec: MoeSpec, router: RouterWeights, plan: LayerPlan | undefined): RouterWeights {
    if (!plan || plan.routerMap) return router;
    const own = plan.router && (this.#routers.get(plan) ?? storedRouterRows(plan.router, spec.router));
    if (own) this.#routers.set(plan, own);
    const kept = (values: Float32Array, size: number) => keepRows(values, plan.experts, size);
    return {
      weight: own?.weight ?? kept(router.weight, this.#model.hiddenSize),
      bias: own?.bias ?? (router.bias && kept(router.bias, 1)),
      correction: own?.correction ?? (router.correction && kept(router.correction, 1)),
    };
  }

  #slots(spec: MoeSpec, mlps: readonly MlpWeights[], plan: LayerPlan): readonly MlpWeights[] {
    const { layer, experts, merge, units, down } = plan;
    return experts.map((expert, slot) => {
      const change = down === undefined ? undefined : { plan, slot };
      if (!merge && !units?.[slot] && !change) return mlps[expert] as MlpWeights;
      const row = merge?.[slot] ?? mlps.map((_, other) => (other === expert ? 1 : 0));
      return this.#merges.merged(layer, { row, units: units?.[slot], change }, spec.experts, mlps);
    });
  }
}

/** Rows of `size` values, one per expert. */
function keepRows(values: Float32Array, experts: readonly number[], size: number): Float32Array {
  const rows = new Float32Array(experts.length * size);
  for (const [slot, expert] of experts.entries()) {
    rows.set(values.subarray(expert * size, (expert + 1) * size), slot * size);
  }
  return rows;
}
