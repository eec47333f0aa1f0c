import type { AttentionPlan, LayerSpans, SpanRule } from "./attention-plan.js";

/** A query at position i sees key j <= i when `j < sinks` or `j > i - window`. */
export interface HeadSpan {
  readonly sinks: number;
  /** Keys up to the query's own, which counts; at least 1. */
  readonly window: number;
}

/**
 * Tokens that a head with this rule sees of a context of `length` tokens, sinks included: whole blocks, and never fewer than
 * the sinks and a key behind them need. May be more than `length`.
 */
export function spanTokens(
  { blockSize, sinks }: Pick<AttentionPlan, "blockSize" | "sinks">,
  { alpha, beta }: SpanRule,
  length: number,
): number {
  return blockSize * Math.ceil(Math.max(alpha + beta * length, sinks + 1) / blockSize);
}

/**
 * Spans of the KV heads of one layer for a context of `length` tokens; undefined where all of them see everything, as a head
 * does whose span is `length` or more.
 */
export function resolveSpans(plan: AttentionPlan, layer: number, length: number): LayerSpans | undefined {
  const spans = plan.layers[layer]?.map((rule): HeadSpan | undefined => {
    const span = spanTokens(plan, plan.rules[rule] as SpanRule, length);
    return span >= length ? undefined : { sinks: plan.sinks, window: span - plan.sinks };
  });
  return spans?.some((span) => span !== undefined) ? spans : undefined;
}

/** Whether a query at position `query` sees the key at `key`; causal, and without limits of the model's own. */
export function seesPosition(span: HeadSpan | undefined, query: number, key: number): boolean {
  return key <= query && (!span || key < span.sinks || key > query - span.window);
}

/** Mean over the KV heads of all layers of span / length; heads that see everything, and layers left as they are, count 1. */
export function spanDensity(plan: AttentionPlan, length: number): number {
  let total = 0;
  plan.layers.forEach((_, layer) => {
    const spans = resolveSpans(plan, layer, length);
    if (!spans) total += plan.model.kvHeads;
    else for (const span of spans) total += span ? (span.sinks + span.window) / length : 1;
  });
  return total / (plan.layers.length * plan.model.kvHeads);
}
