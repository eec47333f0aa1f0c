export { type AntidiagonalOptions, antidiagonal, antidiagonalMask } from "./antidiagonal.js";
export { ContextSamples } from "./context-samples.js";
export { type DuoHeadsOptions, duoHeads } from "./duo-heads.js";
export { type FlexPrefillOptions, flexPrefill, flexPrefillMask } from "./flex-prefill.js";
export { type MoaSpanOptions, moaSpan } from "./moa-span.js";
export { PageChooser, type PageTopkOptions, pageTopk } from "./page-topk.js";
export { type SinkWindowOptions, sinkWindow } from "./sink-window.js";
export { type SpanProgram, type SpanSolution, solveSpans } from "./solve-spans.js";
export { type SpanSolver, spanSolver } from "./span-solver.js";
