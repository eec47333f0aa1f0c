export { formatBytes, formatCount, formatDifference, formatScore, formatShare } from "./format.js";
export { type AttentionLength, type AttentionReport, renderAttention } from "./render-attention.js";
export { renderReport } from "./render-report.js";
export {
  type Estimate,
  type ReportData,
  type ReportEvaluation,
  type ReportFact,
  type ReportFront,
  type ReportFrontPoint,
  type ReportLayer,
  type ReportRow,
  type ReportScores,
  type ReportSize,
  reportLayers,
} from "./report-data.js";
