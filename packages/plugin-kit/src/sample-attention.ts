import {
  type AttentionPlan,
  attentionPlanModel,
  limitableLayers,
  type MoeModel,
  Rng,
  type SpanRule,
} from "@coppice/core";

/** Dense, halves, fixed spans, and one that is dense for long texts only. */
export const sampleSpanRules: readonly SpanRule[] = [
  { alpha: 0, beta: 1 },
  { alpha: 0, beta: 0.5 },
  { alpha: 6, beta: 0 },
  { alpha: -4, beta: 0.75 },
  { alpha: 3, beta: 0.125 },
  { alpha: -20, beta: 1 },
];

/** A plan with different rules for the KV heads of a layer, where the model lets it. */
export function sampleAttention(model: MoeModel, more: Partial<AttentionPlan> = {}): AttentionPlan {
  const rng = Rng.fromSeed(81);
  const free = new Set(limitableLayers(model).map(({ index }) => index));
  const owner = attentionPlanModel(model);
  return {
    format: "coppice.attention",
    version: 1,
    model: owner,
    blockSize: 2,
    sinks: 3,
    rules: sampleSpanRules,
    layers: model.layers.map(({ index }) =>
      free.has(index) ? rng.shuffle([...sampleSpanRules.keys()]).slice(0, owner.kvHeads) : null,
    ),
    ...more,
  };
}
