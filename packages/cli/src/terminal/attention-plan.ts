import { type AttentionPlan, resolveSpans, type SpanRule, spanDensity } from "@coppice/core";
import { formatFacts, formatTable } from "./format.js";

const bars = ["▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"];

/** Density of every head at a length, one row per layer and one bar per KV head. */
export function attentionPicture(plan: AttentionPlan, length: number): string {
  const rows = headDensities(plan, length).map((heads, layer) => [
    String(layer),
    heads.map((density) => bars[Math.min(7, Math.floor(density * 8))] as string).join(" "),
    heads.map((density) => density.toFixed(2)).join(" "),
  ]);
  return formatTable(["layer", `heads at ${length} tokens`, "density"], rows, [0]);
}

/** [layers][kvHeads], span / length, 1 where a head sees everything. */
export function headDensities(plan: AttentionPlan, length: number): number[][] {
  return plan.layers.map((_, layer) => {
    const spans = resolveSpans(plan, layer, length);
    return Array.from({ length: plan.model.kvHeads }, (_, head) => {
      const span = spans?.[head];
      return span ? (span.sinks + span.window) / length : 1;
    });
  });
}

export function ruleWords({ alpha, beta }: SpanRule): string {
  return beta === 1 && alpha === 0 ? "all" : `${alpha} + ${beta} N`;
}

/** What the plan costs at lengths, and what its method said of it. */
export function attentionSummary(plan: AttentionPlan, lengths: readonly number[]): string {
  const { report = {}, rules, blockSize, sinks } = plan;
  const facts: [string, string][] = [
    ["density", lengths.map((n) => `${spanDensity(plan, n).toFixed(3)} at ${n}`).join(", ")],
    ["rules", rules.map(ruleWords).join(", ")],
    ["sinks, block", `${sinks}, ${blockSize} tokens`],
  ];
  if (typeof report["method"] === "string") facts.unshift(["method", report["method"]]);
  const solver = object(report["solver"]);
  if (solver) {
    const [loss, bound] = [number(solver["loss"]), number(solver["bound"])];
    const proof = solver["optimal"] === true ? "the least possible" : `at least ${bound}`;
    facts.push(["predicted loss", `${loss}, ${proof}`]);
  }
  const correlation = report["rankCorrelation"];
  if (typeof correlation === "number") {
    facts.push(["predicted against measured", `rank correlation ${correlation.toFixed(3)}`]);
  }
  const validation = object(report["validation"]);
  const [dense, own] = [object(validation?.["dense"]), object(validation?.["plan"])];
  if (validation && dense && own) {
    facts.push([
      `loss of responses at ${String(validation["length"])}`,
      `${number(own["loss"])}, dense ${number(dense["loss"])}`,
    ]);
  }
  return formatFacts(facts);
}

function object(value: unknown): Readonly<Record<string, unknown>> | undefined {
  return typeof value === "object" && value !== null ? (value as Record<string, unknown>) : undefined;
}

function number(value: unknown): string {
  return typeof value === "number" ? Number(value.toPrecision(4)).toString() : "?";
}
