import { type AttentionPlan, type MoeModel, type SpanRule, spanDensity } from "@coppice/core";

/** An attention plan in numbers. */
export interface AttentionInspection {
  /** The model's context, which `density` speaks of. */
  readonly length: number;
  /** Share of such a context that KV heads see on average. */
  readonly density: number;
  readonly sinks: number;
  readonly blockSize: number;
  /** The rules that heads have, and how many KV heads of all layers each. */
  readonly rules: readonly (SpanRule & { readonly heads: number })[];
  /** Layers that stay as the model has them. */
  readonly otherLayers: number;
}

export function inspectAttention(
  plan: AttentionPlan,
  { contextLength: length }: Pick<MoeModel, "contextLength">,
): AttentionInspection {
  const { sinks, blockSize, layers } = plan;
  const heads = layers.flatMap((rules) => rules ?? []);
  const rules = plan.rules.map((rule, index) => ({
    ...rule,
    heads: heads.filter((own) => own === index).length,
  }));
  return {
    length,
    density: spanDensity(plan, length),
    sinks,
    blockSize,
    rules: rules.filter(({ heads }) => heads > 0),
    otherLayers: layers.filter((rules) => rules === null).length,
  };
}
