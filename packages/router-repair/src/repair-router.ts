import {
  CoppiceError,
  checkCollected,
  checkWholeNumber,
  createPlan,
  type LayerPlan,
  type LayerSample,
  type MoeLayer,
  type MoeModel,
  matchingStatistics,
  moeLayers,
  type Plan,
  type RunEmitter,
  type Statistics,
  startProgress,
  type TensorRef,
  throwIfAborted,
  type WeightReader,
} from "@coppice/core";
import { BlockView } from "./block-view.js";
import { fitRouter, leastGain, type RepairStep } from "./fit-router.js";
import { type PartErrors, SplitSample } from "./fit-state.js";
import { plannedValues, routerRows } from "./router-values.js";
import { slotMixes } from "./slot-mixes.js";

export interface RepairOptions {
  readonly model: MoeModel;
  readonly weights: WeightReader;
  /** Pruned, merged or with another top-k; router rows that it has already are where the fit starts. */
  readonly plan: Plan;
  /** Of the model without the plan, with a sample of `repairNeeds`. */
  readonly statistics: Statistics;
  /**
   * Share of the best ridge fit's gain on held-out tokens that is given up for router rows that change less, from 0 to 1. The
   * inputs of the fit are those of the whole model; under the plan they differ, and rows that were fitted closely to them
   * serve it worse.
   * @default 0.6
   */
  readonly caution?: number;
  /** Most rounds of fits per layer. More fit the sample closer, which seldom helps the model. @default 1 */
  readonly rounds?: number;
  /** Gets `progress` in layers. */
  readonly emitter?: RunEmitter;
  readonly signal?: AbortSignal;
}

/** What the statistics must have. */
export const repairNeeds = { sample: ["logits", "inputs", "grams"] } as const;

/** What was done to the router of one layer. Errors are Σ ‖y - y'‖² / Σ ‖y‖² over tokens, y the output of its routed experts. */
export interface LayerRepair {
  readonly layer: number;
  /** Tokens of the sample in each part. */
  readonly tokens: { readonly fit: number; readonly heldOut: number };
  readonly before: PartErrors;
  /** Of the rows as they are stored; those of before where nothing helped. */
  readonly after: PartErrors;
  readonly steps: readonly RepairStep[];
  /**
   * False where experts are merged, whose outputs are taken to be the mean of their members', or their down projections
   * changed, which is not seen.
   */
  readonly exact: boolean;
}

export interface RepairedRouter {
  readonly plan: Plan;
  /** One entry per layer of the plan, in layer order. */
  readonly layers: readonly LayerRepair[];
}

const defaultCaution = 0.6;
/** Each takes seconds per layer, and few change anything. */
const mostRounds = 100;
/** One in so many tokens is held out. */
const heldOutEvery = 4;
/** Fewest tokens that make a split worth the name. */
const fewestTokens = 32;

/**
 * Fits the router rows of every layer of a plan so that its block puts out what the whole block did, on the sample of tokens
 * in the statistics, without gradients and without running the model.
 *
 * The error of a router is known exactly for every token of a pruned plan (`BlockView`): dᵀ G d, with G the Gram matrix
 * of all experts' outputs and d the change of every expert's gate weight. From G follow the best choice and gate weights
 * that the router could make for the token, from these the logits that make them (`tokenTargets`), and the rows are fitted
 * to those by weighted ridge regression of the change (`Ridge`); line searches of temperatures, bias and correction go
 * before. Each step must lower the error on tokens that are held out.
 *
 * Layers are fitted one by one to the inputs that they have in the whole model; what the plan changes of the inputs of later
 * layers is not seen. Merged experts are taken to put out the weighted mean of their members' outputs (`slotMixes`).
 *
 * The aim is that of Router KD (arXiv 2603.02217), which trains routers by gradients to the whole model's predictions; the
 * method is this package's own.
 * @throws COPPICE_STATS_MISSING, COPPICE_STATS_MODEL, COPPICE_FAMILY_UNSUPPORTED where gate weights scale inputs,
 * COPPICE_PLAN_INVALID for a plan with router maps, COPPICE_ABORTED; those of the reader
 */
export async function repairRouter(options: RepairOptions): Promise<RepairedRouter> {
  const { model, plan, statistics, emitter, signal, caution = defaultCaution, rounds = 1 } = options;
  checkWholeNumber("rounds", rounds, mostRounds);
  if (!(caution >= 0 && caution <= 1)) {
    throw new CoppiceError("COPPICE_USAGE", `caution is ${caution}, expected a number from 0 to 1`);
  }
  const samples = checkedSamples(model, statistics);
  const plans = new Map(plan.layers.map((layer) => [layer.layer, layer]));
  checkRepairable(model, plan);
  const layers: LayerRepair[] = [];
  const repaired = new Map(plans);
  const tell = startProgress(emitter, "repairing routers", "layers");
  for (const [i, layer] of moeLayers(model).entries()) {
    const own = plans.get(layer.index);
    if (!own) continue;
    const stop = () => throwIfAborted(signal, `repairing the router of layer ${layer.index}`);
    stop();
    const found = await repairLayer(layer, own, samples[i] as RepairSample, options, stop);
    repaired.set(layer.index, found.plan);
    layers.push(found.report);
    tell(layers.length, plan.layers.length);
  }
  return {
    plan: createPlan(
      model,
      plan.layers.map(({ layer }) => repaired.get(layer) as LayerPlan),
    ),
    layers,
  };
}

type RepairSample = Required<Pick<LayerSample, "logits" | "inputs" | "grams">>;

async function repairLayer(
  { index, feedForward }: MoeLayer,
  plan: LayerPlan,
  { logits, inputs, grams }: RepairSample,
  { model, weights, signal, caution = defaultCaution, rounds = 1 }: RepairOptions,
  stop: () => void,
): Promise<{ plan: LayerPlan; report: LayerRepair }> {
  const { router, experts } = feedForward;
  const read = async (ref: TensorRef | undefined) => ref && weights.read(ref, { ...(signal && { signal }) });
  const whole = {
    weight: await weights.read(router.weight, { ...(signal && { signal }) }),
    bias: await read(router.bias),
    correction: await read(router.correction),
  };
  const own = plannedValues(whole, plan, router);
  const mixes = slotMixes(plan, experts.length);
  const block = new BlockView(router, plan, mixes, { logits, grams }, whole.correction);
  const sample = new SplitSample(block, inputs, model.hiddenSize, heldOutEvery);
  const before = sample.measure(own).errors;
  const { best, steps } = fitRouter(sample, own, { caution, rounds, stop });
  const rows = routerRows(best.values, router);
  const after = sample.measure(plannedValues(whole, { ...plan, router: rows }, router)).errors;
  const helps = after.heldOut < before.heldOut * (1 - leastGain);
  return {
    plan: helps ? { ...plan, router: rows } : plan,
    report: {
      layer: index,
      tokens: { fit: sample.fit.length, heldOut: sample.heldOut.length },
      before,
      after: helps ? after : before,
      steps: helps ? steps : [],
      exact: mixes.exact,
    },
  };
}

function checkedSamples(model: MoeModel, statistics: Statistics): RepairSample[] {
  const layers = matchingStatistics({ model, statistics });
  checkCollected(statistics, repairNeeds, "router repair");
  const tokens = statistics.sample?.priorities.length ?? 0;
  if (tokens < fewestTokens) {
    throw new CoppiceError(
      "COPPICE_STATS_MISSING",
      `the sample has ${tokens} tokens, router repair needs at least ${fewestTokens}`,
      { hint: "calibrate on more data", details: { tokens, least: fewestTokens } },
    );
  }
  return layers.map(({ sample }) => sample as RepairSample);
}

function checkRepairable(model: MoeModel, { layers }: Plan): void {
  const mapped = layers.find(({ routerMap }) => routerMap);
  if (mapped) {
    throw new CoppiceError(
      "COPPICE_PLAN_INVALID",
      `layer ${mapped.layer} of the plan has a router map, which stands in place of router rows`,
      { hint: "search with router: stock, or project the plan to stock routers first" },
    );
  }
  if (!moeLayers(model).some(({ feedForward }) => feedForward.router.scalesInput)) return;
  throw new CoppiceError(
    "COPPICE_FAMILY_UNSUPPORTED",
    `gate weights of ${model.family} multiply inputs of experts, so that outputs change with the router in a way that ` +
      "the sample does not show; its routers cannot be repaired from it",
  );
}
