import { type AttentionPlan, type MoeModel, resolveSpans, spanDensity } from "@coppice/core";
import { textFile } from "./companion-files.js";
import type { OutputFile } from "./write-files.js";

/** File that tells people how far attention sees in what lies beside it. */
export const attentionNoteFileName = "ATTENTION.md";

/**
 * What keeps an attention plan in a folder: `coppice.json` of a `checkpoint`, a `graph` whose heads see no more, or `nothing`, because
 * the format has no place for it or it was left out.
 */
export type AttentionKeeper = "checkpoint" | "graph" | "nothing";

export interface AttentionNoteOptions {
  /** Default `checkpoint`. */
  readonly keptBy?: AttentionKeeper;
  /** Tokens of context that the note speaks of; default: the model's context. */
  readonly length?: number;
}

/** The note about a plan; no file without a plan. */
export function attentionNoteFiles(
  plan: AttentionPlan | null | undefined,
  model: MoeModel,
  options: AttentionNoteOptions = {},
): OutputFile[] {
  return plan ? [textFile(attentionNoteFileName, attentionNote(plan, model, options))] : [];
}

/**
 * What a model card says of an attention plan, as Markdown: what heads see, what keeps it, and how near runtimes come to it that know
 * sliding windows alone.
 */
export function attentionNote(
  plan: AttentionPlan,
  model: MoeModel,
  { keptBy = "checkpoint", length = model.contextLength }: AttentionNoteOptions = {},
): string {
  const spans = plan.layers.map((_, layer) => layerSpans(plan, model, layer, length));
  const rows = spans.map((heads, layer) =>
    plan.layers[layer]
      ? `| ${layer} | ${heads.join(", ")} | ${windowWords(Math.max(...heads), length)} |`
      : `| ${layer} | as the model is | as the model is |`,
  );
  return `# How far attention sees

The heads of this model were given spans: each sees the first ${plan.sinks} tokens and a window of the latest ones, together as many as the table
below says. At ${length} tokens, heads see ${(100 * spanDensity(plan, length)).toFixed(1)} % of the context on average.

${keepers[keptBy]}

## Runtimes that know sliding windows alone

They can keep a part of it. ${lostSinks(plan)} Measure before you rely on any of these.

${uniformWindows(spans.flat(), length)}
* **A window per layer**, where a runtime takes one: the last column. No head of a layer sees less than planned but for the first tokens; heads with
  shorter spans see more, and save nothing.

| layer | tokens that each KV head sees of ${length} | sliding window |
|---|---|---|
${rows.join("\n")}
`;
}

const keepers: Readonly<Record<AttentionKeeper, string>> = {
  checkpoint: `The plan is part of \`coppice.json\`, and Coppice runs by it. The weights work without it: runtimes that know nothing of it see everything, at full
cost.`,
  graph: `The graphs in \`onnx\` keep exactly this, in caches that are no longer than the spans. Coppice runs them (\`coppice generate\`, \`coppice serve\`,
\`@coppice/runtime\`); transformers.js does not, because it knows one cache of all tokens per layer.`,
  nothing: "The files here do not keep the plan: runtimes see everything, at full cost.",
};

/** Tokens that each KV head of a layer sees: what the plan says, or the model's own window. */
function layerSpans(plan: AttentionPlan, model: MoeModel, layer: number, length: number): number[] {
  const spans = resolveSpans(plan, layer, length);
  const attention = model.layers[layer]?.attention;
  const own = attention === undefined || attention.kind === "other" ? undefined : attention.slidingWindow;
  return Array.from({ length: plan.model.kvHeads }, (_, head) => {
    const span = spans?.[head];
    return span ? span.sinks + span.window : Math.min(own ?? length, length);
  });
}

/** One window for the whole model: that which costs what the plan costs, and that which cuts no head. */
function uniformWindows(spans: readonly number[], length: number): string {
  const mean = Math.round(spans.reduce((sum, span) => sum + span, 0) / spans.length);
  const cut = spans.filter((span) => span > mean).length;
  const most = Math.max(...spans);
  if (mean === most && most < length) {
    return `* **One window for the model**: a \`sliding_window\` of ${most}, which is the span of every head.`;
  }
  const everything = spans.filter((span) => span >= length).length;
  const without =
    most < length
      ? `a \`sliding_window\` of ${most}, the longest span, takes nothing else from any head`
      : `none: ${everything} of ${spans.length} KV heads see everything, and any window takes that from them`;
  return `* **One window for the model** at the cost of the plan: a \`sliding_window\` of ${mean}. It cuts ${cut} of ${spans.length} KV heads, which the plan lets see
  further.
* **One window for the model** that cuts nothing else: ${without}.`;
}

function lostSinks({ sinks }: AttentionPlan): string {
  if (sinks === 0) return "No head was made to keep the first tokens of a text, so that windows lose none.";
  return `What every window loses are the first ${sinks} tokens, as soon as a text is longer than the window; heads lean on
them, and the plan was made with them.`;
}

function windowWords(span: number, length: number): string {
  return span < length ? String(span) : "none";
}
