import {
  CoppiceError,
  checkCollected,
  type LayerPlan,
  type LayerSample,
  type MoeLayer,
  type MoeModel,
  matchingStatistics,
  moeLayers,
  type Plan,
  plannedRouter,
  type Routing,
  routerLogits,
  routeTokens,
  type SampleField,
  type Statistics,
  type TensorRef,
  throwIfAborted,
  type WeightReader,
} from "@coppice/core";

export interface SampleRequest {
  readonly model: MoeModel;
  /** Of the model without a plan, with a sample of tokens. */
  readonly statistics: Statistics;
  /** Read for the routers' own corrections, and for biases under a plan with router rows. */
  readonly weights: WeightReader;
  /** Default: the model as it is. */
  readonly plan?: Plan;
  readonly signal?: AbortSignal;
}

/** One layer as the sampled tokens see it under a plan. */
export interface SampledLayer {
  readonly layer: MoeLayer;
  readonly plan: LayerPlan;
  readonly sample: LayerSample;
  readonly tokens: number;
  /** Routes all tokens among the slots of the plan; with `changes` under another top-k or rule. */
  route(changes?: Pick<LayerPlan, "topK" | "skip">): Routing;
  /** As `route` when nothing is skipped, with the gate weights that rules are about: not yet divided nor scaled. */
  routePlain(): Routing;
}

/**
 * The layers that a sample of tokens shows, under a plan.
 * @param sample what the statistics must have of every token
 * @param name what needs it, for messages
 * @throws COPPICE_STATS_MISSING, COPPICE_STATS_MODEL, COPPICE_PLAN_INVALID for a plan with router maps, COPPICE_ABORTED
 */
export async function sampledLayers(
  { model, statistics, weights, plan, signal }: SampleRequest,
  sample: readonly SampleField[],
  name: string,
): Promise<SampledLayer[]> {
  const found = matchingStatistics({ model, statistics });
  const hasRows = plan?.layers.some(({ router }) => router) ?? false;
  checkCollected(statistics, { sample: hasRows ? [...sample, "inputs"] : sample }, name);
  if ((statistics.sample?.priorities.length ?? 0) === 0) {
    throw new CoppiceError("COPPICE_STATS_MISSING", `${name} needs a sample of tokens, which has none here`, {
      hint: "calibrate on more data",
    });
  }
  const read = async (ref: TensorRef | undefined) => ref && weights.read(ref, { ...(signal && { signal }) });
  const layers: SampledLayer[] = [];
  for (const [i, layer] of moeLayers(model).entries()) {
    throwIfAborted(signal, `reading the sample of layer ${layer.index}`);
    const { router, experts } = layer.feedForward;
    const own: LayerPlan = plan?.layers.find((entry) => entry.layer === layer.index) ?? {
      layer: layer.index,
      experts: experts.map((_, expert) => expert),
    };
    if (own.routerMap) {
      throw new CoppiceError(
        "COPPICE_PLAN_INVALID",
        `layer ${layer.index} of the plan has a router map, which excludes skip rules and another top-k`,
        { hint: "project the plan to stock routers first" },
      );
    }
    const shown = found[i]?.sample as LayerSample;
    const whole = {
      weight: own.router ? await weights.read(router.weight) : new Float32Array(experts.length),
      bias: own.router && (await read(router.bias)),
      correction: await read(router.correction),
    };
    const values = plannedRouter(whole, own, router);
    const logits = own.router
      ? routerLogits(values.weight, values.bias, shown.inputs as Float32Array, model.hiddenSize)
      : columns(shown.logits, experts.length, own.experts);
    layers.push(sampledLayer(layer, own, shown, { logits, correction: values.correction }));
  }
  return layers;
}

function sampledLayer(
  layer: MoeLayer,
  plan: LayerPlan,
  sample: LayerSample,
  values: {
    readonly logits: Float32Array;
    readonly correction: Float32Array | undefined;
  },
): SampledLayer {
  const { router, experts } = layer.feedForward;
  const tokens = sample.logits.length / experts.length;
  const { logits, correction } = values;
  return {
    layer,
    plan,
    sample,
    tokens,
    route: (changes = {}) =>
      routeTokens(logits, tokens, router, { plan: { ...plan, ...changes }, correction }),
    routePlain: () => {
      const { normalize: _, scale: __, skip: ___, ...plain } = router;
      const { skip: ____, ...without } = plan;
      return routeTokens(logits, tokens, plain, { plan: without, correction });
    },
  };
}

/** Columns of `values` [tokens, width] that belong to the kept experts. */
function columns(values: Float32Array, width: number, kept: readonly number[]): Float32Array {
  return Float32Array.from({ length: (values.length / width) * kept.length }, (_, i) => {
    const token = Math.floor(i / kept.length);
    return values[token * width + (kept[i % kept.length] as number)] as number;
  });
}
