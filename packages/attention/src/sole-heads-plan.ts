import {
  type AttentionPlan,
  attentionPlanModel,
  attentionPlanVersion,
  type MoeModel,
  type SpanRule,
} from "@coppice/core";

export interface SoleHeads {
  readonly blockSize: number;
  readonly sinks: number;
  readonly layer: number;
  /** KV heads of the layer that get the rule. */
  readonly heads: readonly number[];
  readonly rule: SpanRule;
}

/** A plan that limits some heads of one layer and leaves all else as it is. */
export function soleHeadsPlan(
  model: MoeModel,
  { blockSize, sinks, layer, heads, rule }: SoleHeads,
): AttentionPlan {
  const owner = attentionPlanModel(model);
  return {
    format: "coppice.attention",
    version: attentionPlanVersion,
    model: owner,
    blockSize,
    sinks,
    rules: [rule, { alpha: 0, beta: 1 }],
    layers: model.layers.map((_, index) =>
      index === layer
        ? Array.from({ length: owner.kvHeads }, (_, head) => (heads.includes(head) ? 0 : 1))
        : null,
    ),
  };
}
