import {
  checkKeep,
  createPlan,
  type MoeLayer,
  moeLayers,
  type Plan,
  parsePlan,
  type SearchContext,
  selectExperts,
  withTopK,
} from "@coppice/core";
import { unusable } from "./merge-space.js";

export interface StartOptions {
  readonly keep?: number | undefined;
  readonly topK?: number | undefined;
  readonly start?: string | undefined;
  readonly plan?: unknown;
}

export interface StartPlan {
  readonly plan: Plan;
  readonly origin: string;
}

/**
 * The plans of which the best is merged: the given one, that of the criterion `start`, else those of all criteria that have
 * scores, else random experts.
 * @throws COPPICE_PLUGIN_OPTIONS, COPPICE_PLAN_INVALID, COPPICE_PLAN_MODEL, COPPICE_PLAN_KEEP, COPPICE_PLAN_GROUPS
 */
export function startPlans(options: StartOptions, context: SearchContext): StartPlan[] {
  const { keep, start } = options;
  if (options.plan !== undefined) {
    if (start !== undefined) throw unusable("there are both start and plan; give one of them");
    return [{ plan: givenPlan(options, context), origin: "plan" }];
  }
  if (keep === undefined) throw unusable("there is neither keep nor plan; give one of them");
  const layers = moeLayers(context.model).map((layer) => withTopK(layer, options.topK));
  for (const { feedForward, index } of layers) {
    checkKeep(keep, feedForward.experts.length, feedForward.router.topK, index);
  }
  if (layers.length === 0) throw unusable("the model has no MoE layer, so there is nothing to merge");
  const plan = (experts: (layer: MoeLayer, row: number) => readonly number[]): Plan =>
    createPlan(
      context.model,
      layers.map((layer, row) => ({
        layer: layer.index,
        experts: experts(layer, row),
        ...(options.topK !== undefined && { topK: options.topK }),
      })),
    );
  const names = start === undefined ? [...context.scores.keys()] : [start];
  if (names.length === 0) {
    const random = plan(({ feedForward, index }) =>
      selectExperts(
        feedForward,
        feedForward.experts.map(() => context.rng.uniform()),
        keep,
        index,
      ),
    );
    return [{ plan: random, origin: "random" }];
  }
  return names.map((name) => {
    const scores = context.scores.get(name);
    if (!scores) {
      const known = [...context.scores.keys()].join(", ") || "none";
      throw unusable(`start is "${name}", for which there are no scores; there are ${known}`);
    }
    return {
      plan: plan(({ feedForward, index }, row) =>
        selectExperts(feedForward, scores[row] as Float64Array, keep, index),
      ),
      origin: `seed:${name}`,
    };
  });
}

function givenPlan(options: StartOptions, { model }: SearchContext): Plan {
  const plan = parsePlan(options.plan, model);
  const specs = new Map(moeLayers(model).map(({ index, feedForward }) => [index, feedForward]));
  for (const { layer, experts, topK } of plan.layers) {
    const used = topK ?? specs.get(layer)?.router.topK;
    if (options.keep !== undefined && experts.length !== options.keep) {
      throw unusable(`keep is ${options.keep}, the plan keeps ${experts.length} experts in layer ${layer}`);
    }
    if (options.topK !== undefined && used !== options.topK) {
      throw unusable(`topK is ${options.topK}, the plan has ${used} in layer ${layer}`);
    }
  }
  return plan;
}
