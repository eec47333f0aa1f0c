import {
  type AttentionCapabilities,
  type AttentionMasker,
  type CheckedAttention,
  type LayerSpans,
  limitableLayers,
  type MoeModel,
  resolveSpans,
} from "@coppice/core";

/** Pages of keys are chosen from all keys of a text, which would have to come back from the device for every token. */
export const attentionCapabilities: AttentionCapabilities = {
  spans: true,
  prefillMasks: true,
  decodePages: false,
};

/** What a run, or all runs with a cache, limit attention to. */
export interface AttentionLimits {
  /** Layer -> spans of the KV heads per sequence, for layers where one of them is limited. */
  readonly spans: ReadonlyMap<number, readonly (LayerSpans | undefined)[]>;
  readonly masks: AttentionMasks | undefined;
}

/** Masks of prompts, which a masker chooses. */
export interface AttentionMasks {
  /** Layers that it is asked about. */
  readonly layers: ReadonlySet<number>;
  readonly prefill: NonNullable<AttentionMasker["prefill"]>;
}

export function limitsOf(model: MoeModel, attention: CheckedAttention | undefined): AttentionLimits {
  const spans = new Map<number, readonly (LayerSpans | undefined)[]>();
  const { masker } = attention ?? {};
  if (attention?.plan) {
    for (const { index } of model.layers) {
      const own = attention.lengths.map((length) => resolveSpans(attention.plan, index, length));
      if (own.some((one) => one !== undefined)) spans.set(index, own);
    }
  }
  if (!masker?.prefill) return { spans, masks: undefined };
  const layers = new Set(limitableLayers(model).map(({ index }) => index));
  return { spans, masks: { layers, prefill: masker.prefill.bind(masker) } };
}
