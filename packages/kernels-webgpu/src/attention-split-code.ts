import { type AttentionOptions, rowType, rowVector } from "./attention-prefill-code.js";
import { attentionParams, sightBindings, sightCode } from "./attention-sight-code.js";
import { type KernelSource, reads, writes } from "./kernel.js";
import { reduceCode } from "./spread.js";

/** Keys of one workgroup. */
export const splitKeys = 128;
const threads = 64;

/**
 * One query of one head against a stretch of the keys that it sees: partial outputs, then their maximum and sum,
 * [tokens, heads, splits, valueDim + 2].
 */
export function splitSource({ keyVectors, room, sight }: AttentionOptions): KernelSource {
  return {
    name: "attention-split",
    params: { ...attentionParams, splits: "u32" },
    bindings: [
      reads("queries", rowType(keyVectors)),
      reads("keys", rowType(keyVectors)),
      reads("values", "array<f32>"),
      reads("rows", "array<vec4u>"),
      ...sightBindings(sight),
      writes("partial", "array<f32>"),
    ],
    code: `
const NONE = -3.4028234e38;
var<workgroup> query: array<vec4f, ${room}>;
var<workgroup> weights: array<f32, ${splitKeys}>;
var<workgroup> key_rows: array<u32, ${splitKeys}>;
${rowVector("queries", "p.keyDim", keyVectors)}
${rowVector("keys", "p.keyDim", keyVectors)}
${sightCode(sight)}
${reduceCode("add_all", "sum", threads)}
${reduceCode("most_of", "max", threads)}
@compute @workgroup_size(${threads})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) t: u32) {
  let key_vectors = (p.keyDim + 3u) / 4u;
  let row = group.x / p.heads;
  let head = group.x % p.heads;
  let kv_head = head / p.group;
  let place = rows[row];
  let sight = sight_of(place.z, head);
  // Counted in keys that are seen.
  let first = group.y * ${splitKeys}u;
  let end = min(seen_keys(sight, place.x), first + ${splitKeys}u);
  let out = (group.x * p.splits + group.y) * (p.valueDim + 2u);
  for (var v = t; v < key_vectors; v += ${threads}u) { query[v] = queries_at(group.x, v); }
  workgroupBarrier();
  var high = NONE;
  for (var n = first + t; n < end; n += ${threads}u) {
    let row = key_row(sight, place.y, seen_key(sight, place.x, n), kv_head);
    var sum = 0.0;
    for (var v = 0u; v < key_vectors; v++) { sum += dot(query[v], keys_at(row, v)); }
    key_rows[n - first] = row;
    weights[n - first] = sum * p.scale;
    high = max(high, sum * p.scale);
  }
  let most = most_of(t, high);
  var part = 0.0;
  for (var n = first + t; n < end; n += ${threads}u) {
    let e = exp(weights[n - first] - most);
    weights[n - first] = e;
    part += e;
  }
  let total = add_all(t, part);
  for (var d = t; d < p.valueDim; d += ${threads}u) {
    var sum = 0.0;
    for (var n = first; n < end; n++) {
      sum += weights[n - first] * values[key_rows[n - first] * p.valueDim + d];
    }
    partial[out + d] = sum;
  }
  if (t == 0u) {
    partial[out + p.valueDim] = most;
    partial[out + p.valueDim + 1u] = total;
  }
}`,
  };
}

/** Joins the partial results of one query of one head, each with its own maximum. */
export function joinSource({ sinks }: Pick<AttentionOptions, "sinks">): KernelSource {
  return {
    name: "attention-join",
    params: { heads: "u32", valueDim: "u32", splits: "u32" },
    bindings: [
      reads("partial", "array<f32>"),
      ...(sinks ? [reads("sinks", "array<f32>")] : []),
      writes("y", "array<f32>"),
    ],
    code: `
const NONE = -3.4028234e38;
@compute @workgroup_size(${threads})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) t: u32) {
  let base = group.x * p.splits;
  var most = ${sinks ? "sinks[group.x % p.heads]" : "NONE"};
  for (var i = 0u; i < p.splits; i++) { most = max(most, partial[(base + i) * (p.valueDim + 2u) + p.valueDim]); }
  var total = ${sinks ? "exp(sinks[group.x % p.heads] - most)" : "0.0"};
  for (var i = 0u; i < p.splits; i++) {
    let at = (base + i) * (p.valueDim + 2u) + p.valueDim;
    total += select(partial[at + 1u] * exp(partial[at] - most), 0.0, partial[at] == NONE);
  }
  for (var d = t; d < p.valueDim; d += ${threads}u) {
    var sum = 0.0;
    for (var i = 0u; i < p.splits; i++) {
      let at = (base + i) * (p.valueDim + 2u);
      let high = partial[at + p.valueDim];
      sum += select(partial[at + d] * exp(high - most), 0.0, high == NONE);
    }
    y[group.x * p.valueDim + d] = sum / total;
  }
}`,
  };
}
