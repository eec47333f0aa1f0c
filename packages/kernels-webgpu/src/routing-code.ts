import type { RouterSpec, SkipRule } from "@coppice/core";
import { type KernelSource, reads, writes } from "./kernel.js";
import { groupIndex, mainOf, reduceCode } from "./spread.js";

export interface RoutingOptions {
  readonly order: RouterSpec["order"];
  /** Room for the scores of one token: the larger of columns and slots, up to a power of two. */
  readonly room: number;
  readonly map: boolean;
  readonly correction: boolean;
  readonly groups: "none" | "max" | "top2";
  readonly normalize: "none" | "sum" | "power";
  readonly skip: SkipRule["rule"] | "none";
  readonly spared: boolean;
  /** Whether every token goes by the experts that its run keeps (`RouteCall.planned`). */
  readonly planned: boolean;
}

export const routingKey = (options: RoutingOptions) =>
  `route ${Object.values(options).map(String).join(" ")}`;

export type RoutingParam =
  | "tokens"
  | "columns"
  | "slots"
  | "topK"
  | "groups"
  | "keep"
  | "power"
  | "least"
  | "epsilon"
  | "scale"
  | "threshold"
  | "tolerance"
  | "start"
  | "stride";

/** Most experts per token that the kernel has room for; no released model uses more than 16. */
export const topKLimit = 64;
/** Most groups of experts; DeepSeek-V3 has 8. */
export const groupLimit = 64;
const threads = 64;

/**
 * `routeTokens` of core for one token per workgroup: scores, map, correction, groups, the k best, gate weights, skipped choices,
 * normalisation. Scores and gate weights are float32, as they are there.
 */
export function routingSource(options: RoutingOptions): KernelSource<RoutingParam> {
  const { room, map, correction, groups, spared, order, planned } = options;
  const selects = correction || groups !== "none";
  const values = map ? "mapped" : "scores";
  return {
    name: "routing",
    params: routingParams,
    bindings: [
      reads("logits", "array<f32>"),
      ...(map ? [reads("map", "array<f32>")] : []),
      ...(correction ? [reads("correction", "array<f32>")] : []),
      ...(groups !== "none" ? [reads("group_of", "array<u32>")] : []),
      ...(spared ? [reads("spared", "array<u32>")] : []),
      ...(planned ? [reads("runs", "array<u32>"), reads("table", "array<u32>")] : []),
      writes("slots", "array<i32>"),
      writes("gates", "array<f32>"),
    ],
    code: `
const NONE = -3.4028234e38;
var<workgroup> scores: array<f32, ${room}>;
${map ? `var<workgroup> mapped: array<f32, ${room}>;` : ""}
${selects ? `var<workgroup> selection: array<f32, ${room}>;` : ""}
var<workgroup> taken: array<u32, ${room}>;
var<workgroup> best_value: array<f32, ${threads}>;
var<workgroup> best_slot: array<u32, ${threads}>;
var<workgroup> chosen: array<i32, ${topKLimit}>;
var<workgroup> gate: array<f32, ${topKLimit}>;
${groups !== "none" ? `var<workgroup> group_score: array<f32, ${groupLimit}>;\nvar<workgroup> group_size: array<u32, ${groupLimit}>;` : ""}
${reduceCode("add_all", "sum", threads)}
${reduceCode("most_of", "max", threads)}
${bestCode}
${mainOf(threads)} {
  let token = ${groupIndex};
  if (token >= p.tokens) { return; }
${
  planned
    ? `  let own = p.start + runs[token] * p.stride;
  let slot_count = table[own];
  let columns = slot_count;`
    : `  let slot_count = p.slots;
  let columns = p.columns;`
}
  for (var i = t; i < columns; i += ${threads}u) {
    scores[i] = logits[token * p.columns + ${planned ? "table[own + 1u + 2u * i]" : "i"}];
  }
${order === "sparsemixer" ? sparsemixerCode : chooseCode(options, selects ? "selection" : values, values)}
  if (t == 0u) {
${skipCode(options)}
${normalizeCode(options)}
    for (var i = 0u; i < p.topK; i++) {
      slots[token * p.topK + i] = ${planned ? "i32(table[own + 2u + 2u * u32(chosen[i])])" : "chosen[i]"};
      gates[token * p.topK + i] = gate[i] * ${order === "sparsemixer" ? "1.0" : "p.scale"};
    }
  }
}`,
  };
}

/** The best of what each thread saw; ties go to the lower slot. */
const bestCode = `
fn better(value: f32, slot: u32, other: f32, other_slot: u32) -> bool {
  return value > other || (value == other && slot < other_slot);
}
fn reduce_best(t: u32) {
  for (var step = ${threads / 2}u; step > 0u; step /= 2u) {
    workgroupBarrier();
    if (t < step && better(best_value[t + step], best_slot[t + step], best_value[t], best_slot[t])) {
      best_value[t] = best_value[t + step];
      best_slot[t] = best_slot[t + step];
    }
  }
  workgroupBarrier();
}`;

/** Finds the best slot of \`source\` that is not taken and leaves it in best_slot[0]. */
const findBest = (source: string) => `    var value = NONE;
    var slot = 0xffffffffu;
    for (var i = t; i < slot_count; i += ${threads}u) {
      if (taken[i] == 0u && better(${source}[i], i, value, slot)) { value = ${source}[i]; slot = i; }
    }
    best_value[t] = value;
    best_slot[t] = slot;
    reduce_best(t);`;

function chooseCode(
  { order, map, correction, groups, planned }: RoutingOptions,
  selection: string,
  values: string,
): string {
  const each = (count: string, body: string) =>
    `  for (var i = t; i < ${count}; i += ${threads}u) { ${body} }`;
  const score = {
    "softmax-topk": `  workgroupBarrier();
  var most = NONE;
${each("columns", "most = max(most, scores[i]);")}
  most = most_of(t, most);
  var part = 0.0;
${each("columns", "scores[i] = exp(scores[i] - most); part += scores[i];")}
  let total = add_all(t, part);
${each("columns", "scores[i] /= total;")}`,
    "sigmoid-topk": each("columns", "scores[i] = 1.0 / (1.0 + exp(-scores[i]));"),
    "topk-softmax": "",
    "topk-sigmoid": "",
    sparsemixer: "",
  }[order];
  const mapping = map
    ? `  workgroupBarrier();
  for (var i = t; i < slot_count; i += ${threads}u) {
    var sum = 0.0;
    for (var j = 0u; j < columns; j++) { sum += map[i * columns + j] * scores[j]; }
    mapped[i] = sum;
  }`
    : "";
  const selecting =
    selection === values
      ? ""
      : each(
          "slot_count",
          `selection[i] = ${values}[i]${correction ? ` + correction[${planned ? "table[own + 1u + 2u * i]" : "i"}]` : ""};`,
        );
  const value =
    selection === values ? "best_value[0]" : `select(${values}[pick], 0.0, best_value[0] == NONE)`;
  const afterwards = {
    "topk-softmax": `    var most = NONE;
    for (var i = 0u; i < p.topK; i++) { most = max(most, gate[i]); }
    var total = 0.0;
    for (var i = 0u; i < p.topK; i++) { gate[i] = exp(gate[i] - most); total += gate[i]; }
    for (var i = 0u; i < p.topK; i++) { gate[i] /= total; }`,
    "topk-sigmoid": "    for (var i = 0u; i < p.topK; i++) { gate[i] = 1.0 / (1.0 + exp(-gate[i])); }",
  }[order as string];
  return `${score}
${mapping}
${selecting}
  workgroupBarrier();
${groups === "none" ? "" : groupCode(groups)}
  for (var rank = 0u; rank < p.topK; rank++) {
${findBest(selection)}
    if (t == 0u) {
      let pick = best_slot[0];
      chosen[rank] = i32(pick);
      gate[rank] = ${value};
      taken[pick] = 1u;
    }
    workgroupBarrier();
  }
${afterwards === undefined ? "" : `  if (t == 0u) {\n${afterwards}\n  }`}`;
}

/** Slots outside of the best groups get the least value; ties go to the lower group. */
const groupCode = (kind: "max" | "top2") => `  if (t < p.groups) {
    var first = NONE;
    var second = NONE;
    var size = 0u;
    for (var i = 0u; i < slot_count; i++) {
      if (group_of[i] != t) { continue; }
      size++;
      let value = selection[i];
      if (value > first) { second = first; first = value; }
      else if (value > second) { second = value; }
    }
    group_score[t] = ${kind === "max" ? "first" : "select(first + second, first, size == 1u)"};
    group_size[t] = size;
  }
  workgroupBarrier();
  for (var i = t; i < slot_count; i += ${threads}u) {
    let own = group_of[i];
    var rank = 0u;
    for (var g = 0u; g < p.groups; g++) {
      if (group_size[g] > 0u && better(group_score[g], g, group_score[own], own)) { rank++; }
    }
    if (rank >= p.keep) { selection[i] = NONE; }
  }
  workgroupBarrier();`;

const sparsemixerCode = `  workgroupBarrier();
  for (var rank = 0u; rank < p.topK; rank++) {
${findBest("scores")}
    let pick = best_slot[0];
    let most = scores[pick];
    var part = 0.0;
    for (var i = t; i < slot_count; i += ${threads}u) {
      if (taken[i] == 1u) { continue; }
      let distance = (most - scores[i]) / max(abs(scores[i]), most);
      if (!(distance > p.tolerance)) { part += exp(scores[i] - most); }
    }
    let total = add_all(t, part);
    if (t == 0u) {
      chosen[rank] = i32(pick);
      gate[rank] = 1.0 / total;
      taken[pick] = 1u;
    }
    workgroupBarrier();
  }`;

/** \`skipExperts\`: k is small, so one thread does it. */
function skipCode({ skip, spared }: RoutingOptions): string {
  if (skip === "none") return "";
  const rule =
    skip === "ratio"
      ? `      var best = 0u;
      for (var i = 1u; i < p.topK; i++) { if (gate[i] > gate[best]) { best = i; } }
      let least = p.threshold * gate[best];
      for (var i = 0u; i < p.topK; i++) {
        if (i != best && gate[i] < least) { chosen[i] = -1; gate[i] = 0.0; }
      }`
      : `      var total = 0.0;
      for (var i = 0u; i < p.topK; i++) { total += gate[i]; }
      var sum = 0.0;
      var left: array<f32, ${topKLimit}>;
      for (var i = 0u; i < p.topK; i++) { left[i] = gate[i]; }
      for (var rank = 0u; rank < p.topK; rank++) {
        var best = 0u;
        for (var i = 1u; i < p.topK; i++) { if (left[i] > left[best]) { best = i; } }
        left[best] = NONE;
        if (rank > 0u && sum >= p.threshold * total) { chosen[best] = -1; gate[best] = 0.0; }
        else { sum += gate[best]; }
      }`;
  return `    if (${spared ? "spared[token] == 0u" : "true"}) {\n${rule}\n    }`;
}

function normalizeCode({ normalize, map, order }: RoutingOptions): string {
  if (normalize === "none" || order === "sparsemixer") return "";
  const guard = map
    ? `    if (!(abs(norm) > 1e-6)) {
      for (var i = 0u; i < p.topK; i++) { gate[i] = select(0.0, 1.0, i == 0u); }
      norm = 1.0;
    }`
    : "";
  return `    var norm = 0.0;
    for (var i = 0u; i < p.topK; i++) { norm += ${normalize === "sum" ? "gate[i]" : "pow(abs(gate[i]), p.power)"}; }
${guard}
${normalize === "sum" ? "" : "    norm = pow(norm, 1.0 / p.power);"}
    let divisor = max(norm, p.least) + p.epsilon;
    for (var i = 0u; i < p.topK; i++) { gate[i] /= divisor; }`;
}

const routingParams: Readonly<Record<RoutingParam, "u32" | "f32">> = {
  tokens: "u32",
  columns: "u32",
  slots: "u32",
  topK: "u32",
  groups: "u32",
  keep: "u32",
  power: "f32",
  least: "f32",
  epsilon: "f32",
  scale: "f32",
  threshold: "f32",
  tolerance: "f32",
  start: "u32",
  stride: "u32",
};
