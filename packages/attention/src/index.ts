export { ContextSamples } from "./context-samples.js";
export { type MoaSpanOptions, moaSpan } from "./moa-span.js";
export { type SinkWindowOptions, sinkWindow } from "./sink-window.js";
export { type SpanProgram, type SpanSolution, solveSpans } from "./solve-spans.js";
