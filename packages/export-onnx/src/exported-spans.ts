import { CoppiceError, type MoeModel, parseAttentionPlan, resolveSpans, spanDensity } from "@coppice/core";
import { type SpanLayout, spanLayout } from "@coppice/onnx";
import type { GraphOptions } from "./graph-files.js";

/** How far the heads of an exported graph see. */
export interface ExportedSpans {
  readonly layout: SpanLayout;
  /** Tokens of context that the plan's rules are resolved at. */
  readonly length: number;
  /** Share of such a context that heads see on average. */
  readonly density: number;
}

/**
 * The spans of an attention plan; undefined without one, or where every head sees all of such a context.
 * @param positions the longest text that the graph runs
 * @throws COPPICE_EXPORT_UNSUPPORTED for a target that is not known to compute them right, COPPICE_ATTENTION_LENGTH, and what
 * `parseAttentionPlan` does
 */
export function exportedSpans(
  model: MoeModel,
  positions: number,
  { attention, attentionLength: length = positions, target }: GraphOptions,
): ExportedSpans | undefined {
  if (!attention) return undefined;
  const plan = parseAttentionPlan(attention, model);
  if (target === "webgpu") {
    throw new CoppiceError(
      "COPPICE_EXPORT_UNSUPPORTED",
      "graphs for webgpu carry no attention plan: ONNX Runtime's attention is not proven right there behind caches that keep a span",
      { hint: "export for cpu or wasm, or without the plan", details: { target } },
    );
  }
  if (!Number.isSafeInteger(length) || length < 1 || length > positions) {
    throw new CoppiceError(
      "COPPICE_ATTENTION_LENGTH",
      `the attention plan is to be resolved at ${length} tokens; the graph runs texts of 1 to ${positions}`,
      { details: { length, positions } },
    );
  }
  const layout = spanLayout(plan.layers.map((_, layer) => resolveSpans(plan, layer, length)));
  if (layout.spans.length === 0) return undefined;
  return { layout, length, density: spanDensity(plan, length) };
}
