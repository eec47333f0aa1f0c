import { type AttentionPlan, type MoeModel, resolveSpans, spanDensity } from "@coppice/core";
import { textFile } from "./companion-files.js";
import type { OutputFile } from "./write-files.js";

/** File that tells people what `coppice.json` tells Coppice of attention. */
export const attentionNoteFileName = "ATTENTION.md";

/** The note about a plan, to stand beside `coppice.json`; no file without a plan. */
export function attentionNoteFiles(plan: AttentionPlan | undefined, model: MoeModel): OutputFile[] {
  return plan ? [textFile(attentionNoteFileName, attentionNote(plan, model))] : [];
}

/**
 * What a model card says of an attention plan, as Markdown: what heads see, and which windows lose nothing but the first
 * tokens in runtimes that know sliding windows alone.
 */
export function attentionNote(plan: AttentionPlan, model: MoeModel): string {
  const { contextLength: length } = model;
  const rows = plan.layers.map((rules, layer) => {
    if (!rules) return `| ${layer} | as the model is | |`;
    const heads = resolveSpans(plan, layer, length) ?? rules.map(() => undefined);
    const spans = heads.map((span) => (span ? span.sinks + span.window : length));
    const most = Math.max(...spans);
    return `| ${layer} | ${spans.join(", ")} | ${most < length ? most : "none"} |`;
  });
  return `# How far attention sees

The heads of this checkpoint were given spans: each sees the first ${plan.sinks} tokens and a window of the latest ones, together the share of the context
below. The plan is part of \`coppice.json\`, and Coppice runs by it; the weights work without it. At ${length} tokens, heads see
${(100 * spanDensity(plan, length)).toFixed(1)} % of the context on average.

Runtimes that know nothing of it see everything, at full cost. Those that know a sliding window per layer can give each layer the one in the last column: it
is no shorter than the longest span of the layer, but drops the first ${plan.sinks} tokens when they leave it, for which the plan was not made. Measure before you
rely on that.

| layer | tokens that each KV head sees of ${length} | sliding window |
|---|---|---|
${rows.join("\n")}
`;
}
