import { CoppiceError, createPlan, type LayerPlan, type Plan, type SkipRule, skipped } from "@coppice/core";
import { outputChange } from "./output-change.js";
import { type SampledLayer, type SampleRequest, sampledLayers } from "./sampled-layers.js";
import { median, quantileThreshold, skipScores } from "./skip-thresholds.js";

/**
 * - `naee`: `ratio` with the median of the ratio per layer (NAEE, arXiv 2402.14800), so that with top-2 about half of the
 *   tokens run one expert; with a larger k the median is over all ratios g_i / g_1
 * - `odp`: that of MC-MoE (arXiv 2410.06270): as `naee`, in the layers of the smallest sensitivity alone, and sparing the most
 *   important tokens. Its authors give thresholds of 0.40 to 0.62 for one model; here they are that model's medians
 * - `ratio`, `top-p`: thresholds with which tokens run `target` experts on average in every layer
 */
export const skippingPresets = ["naee", "odp", "ratio", "top-p"] as const;
export type SkippingPreset = (typeof skippingPresets)[number];

export interface FitSkippingOptions extends SampleRequest {
  readonly preset: SkippingPreset;
  /** Experts per token on average, from 1 to the top-k; of `ratio` and `top-p`, which need it. */
  readonly target?: number;
  /** `SkipRule.spare` @default 0.02 for odp (its τ_h), 0 for the others */
  readonly spare?: number;
  /** Layers that skip, those of the smallest sensitivity; of odp. @default 10 of 32, as published, of as many as there are */
  readonly layers?: number;
  /**
   * One per MoE layer, of odp. Default: what the rule changes of the layer's output, Σ‖y - y'‖² / Σ‖y‖², for which the
   * sample must have grams. The authors take the loss of the whole model when experts of the layer are pruned.
   */
  readonly sensitivities?: ArrayLike<number>;
}

/** What a rule does to one layer. */
export interface LayerSkipping {
  readonly layer: number;
  /** Absent: all of the top-k always run. */
  readonly skip?: SkipRule;
  readonly topK: number;
  /** Expected experts per token: the mean over the sample, spared tokens taken to be as any others. */
  readonly average: number;
  readonly sensitivity?: number;
}

export interface FittedSkipping {
  /** The given plan, or that of all experts, with the rules. */
  readonly plan: Plan;
  /** One per MoE layer. */
  readonly layers: readonly LayerSkipping[];
  /** Mean of `average` over the layers. */
  readonly average: number;
}

const odpShare = 10 / 32;
const odpSpare = 0.02;

/**
 * Fits the thresholds below which choices of experts do not run (`SkipRule`) to a sample of tokens. Rules look at gate weights
 * as the family's router has them before it divides and scales them, for every order of `routeTokens`.
 * @throws COPPICE_USAGE for settings out of range; those of `sampledLayers`
 */
export async function fitSkipping(options: FitSkippingOptions): Promise<FittedSkipping> {
  const { model, preset, sensitivities } = options;
  checkPresetOptions(options);
  const measures = preset === "odp" && sensitivities === undefined;
  const layers = await sampledLayers(
    options,
    measures ? ["logits", "grams"] : ["logits"],
    `skipping by ${preset}`,
  );
  const spare = options.spare ?? (preset === "odp" ? odpSpare : 0);
  const rules = layers.map((shown) => fitRule(shown, options, spare));
  const sensitivity =
    preset === "odp"
      ? (sensitivities ?? rules.map((rule, i) => changeOf(layers[i] as SampledLayer, rule)))
      : undefined;
  const chosen = sensitivity && leastSensitive(sensitivity, layers.length, options.layers);
  const found = layers.map((shown, i): LayerSkipping => {
    // A rule that the model brings along gives way as well.
    const none = shown.layer.feedForward.router.skip && nothing;
    const skip = (chosen && !chosen.has(i) ? undefined : rules[i]) ?? none;
    return {
      layer: shown.layer.index,
      ...(skip && { skip }),
      topK: shown.routePlain().topK,
      average: averageOf(shown, skip ?? nothing),
      ...(sensitivity && { sensitivity: sensitivity[i] as number }),
    };
  });
  const plans = layers.map(({ plan: { skip: _, ...plan } }, i): LayerPlan => {
    const skip = found[i]?.skip;
    return { ...plan, ...(skip && { skip }) };
  });
  return {
    plan: createPlan(model, plans),
    layers: found,
    average: found.reduce((sum, { average }) => sum + average, 0) / found.length,
  };
}

/** The rule of a layer; undefined where one expert runs anyway. */
function fitRule(
  shown: SampledLayer,
  { preset, target = 1 }: FitSkippingOptions,
  spare: number,
): SkipRule | undefined {
  const routing = shown.routePlain();
  const { topK } = routing;
  const rule = preset === "top-p" ? "top-p" : "ratio";
  if (preset === "naee" || preset === "odp") {
    if (topK === 1) return undefined;
  } else if (target > topK) {
    throw new CoppiceError(
      "COPPICE_USAGE",
      `an average of ${target} experts per token is more than the top-k of ${topK} of layer ${shown.layer.index}`,
      { details: { layer: shown.layer.index, topK, target } },
    );
  } else if (target === topK) return undefined;
  const scores = skipScores(rule, routing);
  const threshold =
    preset === "naee" || preset === "odp" ? median(scores) : quantileThreshold(rule, scores, topK, target);
  return { rule, threshold, ...(spare > 0 && { spare }) };
}

function averageOf(shown: SampledLayer, skip: SkipRule): number {
  const { slots } = shown.route({ skip });
  return slots.reduce((count, slot) => (slot === skipped ? count : count + 1), 0) / shown.tokens;
}

function changeOf(shown: SampledLayer, skip: SkipRule | undefined): number {
  if (!skip) return 0;
  const { squared, whole } = outputChange(shown, shown.route({ skip: nothing }), shown.route({ skip }));
  return whole > 0 ? squared / whole : 0;
}

/** Takes the place of a rule that the model brings along. */
const nothing = { rule: "ratio", threshold: 0 } as const;

function leastSensitive(
  sensitivities: ArrayLike<number>,
  layers: number,
  count = Math.max(1, Math.round(odpShare * layers)),
): ReadonlySet<number> {
  if (sensitivities.length !== layers || !Array.from(sensitivities).every(Number.isFinite)) {
    throw new CoppiceError(
      "COPPICE_USAGE",
      `sensitivities are ${sensitivities.length} values, expected ${layers} finite numbers, one per MoE layer`,
    );
  }
  const order = Array.from({ length: layers }, (_, i) => i).sort(
    (a, b) => (sensitivities[a] as number) - (sensitivities[b] as number) || a - b,
  );
  return new Set(order.slice(0, count));
}

function checkPresetOptions({ preset, target, spare, layers, sensitivities }: FitSkippingOptions): void {
  const refuse = (why: string) => {
    throw new CoppiceError("COPPICE_USAGE", why);
  };
  const fitsTarget = preset === "ratio" || preset === "top-p";
  if (fitsTarget && !(target !== undefined && target >= 1 && target < Number.POSITIVE_INFINITY)) {
    refuse(`${preset} needs the average of experts per token to aim at, of at least 1; it is ${target}`);
  }
  if (!fitsTarget && target !== undefined) {
    refuse(`${preset} takes medians and no average to aim at; ratio and top-p do`);
  }
  if (spare !== undefined && !(spare >= 0 && spare <= 1)) refuse(`spare is ${spare}, expected 0 to 1`);
  if (preset !== "odp" && (layers !== undefined || sensitivities !== undefined)) {
    refuse(`${preset} skips in all layers; odp chooses some`);
  }
  if (layers !== undefined && !(Number.isSafeInteger(layers) && layers >= 1)) {
    refuse(`${layers} layers are to skip, expected a whole number of at least 1`);
  }
}
