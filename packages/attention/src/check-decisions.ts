import { rankCorrelation } from "@coppice/calibrate";
import { limitableLayers, type MoeModel, type SpanRule, throwIfAborted } from "@coppice/core";
import type { Predictions } from "./layer-probe.js";
import { soleHeadsPlan } from "./sole-heads-plan.js";

/** One head that was limited alone. */
export interface CheckedDecision {
  readonly layer: number;
  readonly head: number;
  readonly rule: SpanRule;
  /** What the profile says. */
  readonly predicted: number;
  /** Divergence of predictions, in nats per position. */
  readonly measured: number;
}

export interface DecisionCheck {
  readonly decisions: readonly CheckedDecision[];
  /** Spearman's, of predicted and measured; null where all are alike. */
  readonly rankCorrelation: number | null;
}

export interface DecisionRequest {
  readonly model: MoeModel;
  readonly blockSize: number;
  readonly sinks: number;
  readonly rules: readonly SpanRule[];
  /** [H, R], of the length that predictions are compared at. */
  readonly losses: Float64Array;
  /** [H] */
  readonly choice: Int32Array;
  readonly predictions: Predictions;
  readonly count: number;
  readonly signal?: AbortSignal;
}

/**
 * Limits heads one at a time and compares what that does to the predictions with what the profile said: the chosen rules of
 * heads and their neighbours in length, at equal distances in the order of predicted losses.
 */
export async function checkDecisions(request: DecisionRequest): Promise<DecisionCheck> {
  const { model, rules, losses, choice, predictions, signal } = request;
  const heads = limitableLayers(model).flatMap(({ index, attention }) =>
    Array.from({ length: attention.kvHeads }, (_, head) => ({ layer: index, head })),
  );
  const near = heads.flatMap((place, h) => {
    const own = choice[h] as number;
    // Rules are in the order of their lengths.
    return [own - 1, own, own + 1].flatMap((r) => {
      const rule = rules[r];
      const predicted = losses[h * rules.length + r];
      return rule && predicted ? [{ ...place, rule, predicted }] : [];
    });
  });
  near.sort((a, b) => a.predicted - b.predicted);
  const wanted = Math.min(request.count, near.length);
  const decisions: CheckedDecision[] = [];
  for (let i = 0; i < wanted; i++) {
    throwIfAborted(signal, "checking predicted losses");
    const decision = near[Math.floor((i * near.length) / wanted)] as (typeof near)[number];
    const plan = soleHeadsPlan(model, { ...request, ...decision, heads: [decision.head] });
    decisions.push({ ...decision, measured: await predictions.loss(plan) });
  }
  const correlation = rankCorrelation(
    decisions.map(({ predicted }) => predicted),
    decisions.map(({ measured }) => measured),
  );
  return { decisions, rankCorrelation: correlation ?? null };
}
