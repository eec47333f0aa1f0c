import {
  type AttentionMethod,
  type AttentionPlan,
  type AttentionPlanRequest,
  definePlugin,
  limitableLayers,
  type SpanRule,
} from "@coppice/core";
import * as v from "valibot";
import { blockSizeSchema, defaultSpans, sinksSchema } from "./span-options.js";
import { spanBudgets, spanPlan } from "./span-plan.js";

/** Options of the plugin `sink-window`. */
export interface SinkWindowOptions {
  /** First tokens that every head keeps; default 4. */
  readonly sinks?: number;
  /** Tokens per block, of which spans are whole numbers; default 16. */
  readonly blockSize?: number;
}

declare module "@coppice/core" {
  interface AttentionPlugins {
    "sink-window": SinkWindowOptions;
  }
}

/**
 * Every head sees the first tokens and the latest: attention sinks and a sliding window (StreamingLLM, arXiv 2309.17453), as long
 * as the density allows. Needs nothing but the model's shape, and forgets what is in between: the baseline.
 */
export const sinkWindow = definePlugin({
  kind: "attention",
  name: "sink-window",
  contract: 1,
  summary: "Every head sees the first tokens and the latest (StreamingLLM).",
  reference: "https://arxiv.org/abs/2309.17453",
  options: v.strictObject({
    sinks: v.exactOptional(sinksSchema, defaultSpans.sinks),
    blockSize: v.exactOptional(blockSizeSchema, defaultSpans.blockSize),
  }),
  create: (options): AttentionMethod => ({
    needs: { runner: false, weights: false, samples: false },
    plan: async (request) => sinkWindowPlan(request, options),
  }),
});

function sinkWindowPlan(
  { model, lengths, density }: AttentionPlanRequest,
  spans: Required<SinkWindowOptions>,
): AttentionPlan {
  // Layers that stay dense use up what they have more than their share.
  const limited = limitableLayers(model).length;
  const share = (density * model.layers.length - (model.layers.length - limited)) / limited;
  const rules = [roundedDown(share, spans.blockSize, lengths)];
  const { layers } = spanBudgets(model, { ...spans, rules }, { lengths, density });
  const choice = new Int32Array(layers.reduce((sum, heads) => sum + heads, 0));
  return spanPlan(model, { ...spans, rules, choice, report: { method: "sink-window", density, lengths } });
}

/** The largest span that is not more than a share of the context in whole blocks: rules round up. */
function roundedDown(share: number, blockSize: number, lengths: readonly number[]): SpanRule {
  if (share >= 1) return { alpha: 0, beta: 1 };
  const isOver = (alpha: number) =>
    lengths.some(
      (length) => blockSize * Math.ceil((alpha + share * length) / blockSize) > share * length + 1e-9,
    );
  const alpha = 1 - blockSize;
  return { alpha: isOver(alpha) ? -blockSize : alpha, beta: Math.max(0, share) };
}
