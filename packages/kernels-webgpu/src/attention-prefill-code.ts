import { attentionParams, type SightKind, sightBindings, sightCode } from "./attention-sight-code.js";
import { type KernelSource, reads, writes } from "./kernel.js";
import { range } from "./range.js";

export interface AttentionOptions {
  /** Whether rows of queries and keys, and of values, are read in vectors: their sizes are multiples of 4. */
  readonly keyVectors: boolean;
  readonly valueVectors: boolean;
  /** Room for vectors of 4 dimensions of a query (split), or of the output per thread (prefill). */
  readonly room: number;
  readonly sinks: boolean;
  readonly sight: SightKind;
}

export const attentionKey = (options: AttentionOptions) => Object.values(options).map(String).join(" ");

/** Queries of a workgroup. */
export const queryTile = 32;
const keyTile = 64;
/** Vectors of 4 dimensions of queries and keys that lie in workgroup memory at once. */
const depth = 4;
const threads = 128;

/** WGSL of `fn <name>_at(row, v) -> vec4f`: dimensions 4 v to 4 v + 3 of a row of `size` values, 0 beyond its end. */
export function rowVector(name: string, size: string, vectors: boolean): string {
  return vectors
    ? `fn ${name}_at(row: u32, v: u32) -> vec4f { return ${name}[row * (${size} / 4u) + v]; }`
    : `fn ${name}_at(row: u32, v: u32) -> vec4f {
  var value = vec4f(0.0);
  for (var i = 0u; i < 4u; i++) { if (4u * v + i < ${size}) { value[i] = ${name}[row * ${size} + 4u * v + i]; } }
  return value;
}`;
}

export const rowType = (vectors: boolean) => (vectors ? "array<vec4f>" : "array<f32>");

/**
 * A tile of 32 queries of one head against tiles of 64 keys: those of the sinks, then from the first that any of them sees to the
 * last; of a block mask, those tiles of which a block is seen. Scores of a tile
 * are summed in registers, 4 queries by 4 keys a thread; softmax runs along with maximum and sum per query; the output stays in
 * registers, 4 queries by some vectors of 4 dimensions a thread.
 */
export function prefillSource({
  keyVectors,
  valueVectors,
  room,
  sinks,
  sight,
}: AttentionOptions): KernelSource {
  const rows = range(4);
  const columns = range(room);
  const after = `k0 + ${keyTile}u`;
  // Behind the sinks comes the window of the first query.
  const [first, next] =
    sight === "spans"
      ? ["select(reach, 0u, sight.x > 0u)", `select(${after}, max(${after}, reach), ${after} >= sight.x)`]
      : ["reach", after];
  const code = `
const NONE = -3.4028234e38;
var<workgroup> q_tile: array<vec4f, ${queryTile * depth}>;
var<workgroup> k_tile: array<vec4f, ${keyTile * depth}>;
var<workgroup> weights: array<vec4f, ${(queryTile * keyTile) / 4}>;
var<workgroup> part: array<f32, ${threads}>;
var<workgroup> most: array<f32, ${queryTile}>;
var<workgroup> total: array<f32, ${queryTile}>;
var<workgroup> shrink: array<f32, ${queryTile}>;
${rowVector("queries", "p.keyDim", keyVectors)}
${rowVector("keys", "p.keyDim", keyVectors)}
${rowVector("values", "p.valueDim", valueVectors)}
${sightCode(sight)}
fn masked(sight: vec4u, score: f32, position: u32, key: u32) -> f32 {
  return select(NONE, score * p.scale, sees(sight, position, key));
}
@compute @workgroup_size(16, 8)
fn main(
  @builtin(workgroup_id) group: vec3u,
  @builtin(local_invocation_id) thread: vec3u,
  @builtin(local_invocation_index) t: u32,
) {
  let key_vectors = (p.keyDim + 3u) / 4u;
  let value_vectors = (p.valueDim + 3u) / 4u;
  let tile = tiles[group.x];
  let head = group.y;
  let kv_head = head / p.group;
  let sight = sight_of(${sight === "none" ? "0u" : "rows[tile.x].z"}, head);
  let count = tile.y;
  let position = tile.z;
  let end = position + count;
  if (t < ${queryTile}u) {
    most[t] = ${sinks ? "sinks[head]" : "NONE"};
    total[t] = ${sinks ? "1.0" : "0.0"};
  }
${rows.flatMap((i) => columns.map((c) => `  var o_${i}_${c} = vec4f(0.0);`)).join("\n")}
  let reach = first_seen(sight, position);
  for (var k0 = ${first}; k0 < end; k0 = ${next}) {
${sight === "blocks" ? `    if (!any_seen(sight, position, end - 1u, k0, k0 + ${keyTile - 1}u)) { continue; }` : ""}
${rows.map((i) => `    var s_${i} = vec4f(0.0);`).join("\n")}
    for (var d0 = 0u; d0 < key_vectors; d0 += ${depth}u) {
      for (var i = t; i < ${queryTile * depth}u; i += ${threads}u) {
        let row = i / ${depth}u;
        let v = d0 + i % ${depth}u;
        var value = vec4f(0.0);
        if (row < count && v < key_vectors) { value = queries_at((tile.x + row) * p.heads + head, v); }
        q_tile[(i % ${depth}u) * ${queryTile}u + row] = value;
      }
      for (var i = t; i < ${keyTile * depth}u; i += ${threads}u) {
        let key = i / ${depth}u;
        let v = d0 + i % ${depth}u;
        var value = vec4f(0.0);
        if (k0 + key < end && v < key_vectors) { value = keys_at(key_row(sight, tile.w, k0 + key, kv_head), v); }
        // Keys 4 n to 4 n + 3 belong to one thread; apart by 16, neighbours read neighbouring banks.
        k_tile[(i % ${depth}u) * ${keyTile}u + (key % 4u) * 16u + key / 4u] = value;
      }
      workgroupBarrier();
      for (var d = 0u; d < ${depth}u; d++) {
${rows.map((i) => `        let q_${i} = q_tile[d * ${queryTile}u + thread.y + ${8 * i}u];`).join("\n")}
${rows
  .map((j) =>
    [
      `        let k_${j} = k_tile[d * ${keyTile}u + ${16 * j}u + thread.x];`,
      ...rows.map((i) => `        s_${i}[${j}] += dot(q_${i}, k_${j});`),
    ].join("\n"),
  )
  .join("\n")}
      }
      workgroupBarrier();
    }
${rows
  .map(
    (i) => `    {
      let row = thread.y + ${8 * i}u;
      let at = position + row;
      let key = k0 + 4u * thread.x;
      weights[row * 16u + thread.x] = vec4f(
        masked(sight, s_${i}.x, at, key), masked(sight, s_${i}.y, at, key + 1u),
        masked(sight, s_${i}.z, at, key + 2u), masked(sight, s_${i}.w, at, key + 3u));
    }`,
  )
  .join("\n")}
    workgroupBarrier();
    // Four threads per query, 16 keys each.
    let row = t / 4u;
    var high = NONE;
    for (var i = 0u; i < 4u; i++) {
      let w = weights[row * 16u + 4u * (t % 4u) + i];
      high = max(high, max(max(w.x, w.y), max(w.z, w.w)));
    }
    part[t] = high;
    workgroupBarrier();
    let before = most[row];
    let now = max(max(before, part[4u * row]), max(part[4u * row + 1u], max(part[4u * row + 2u], part[4u * row + 3u])));
    workgroupBarrier();
    var sum = 0.0;
    for (var i = 0u; i < 4u; i++) {
      let at = row * 16u + 4u * (t % 4u) + i;
      let w = weights[at];
      let e = select(exp(w - now), vec4f(0.0), w == vec4f(NONE));
      weights[at] = e;
      sum += e.x + e.y + e.z + e.w;
    }
    part[t] = sum;
    workgroupBarrier();
    if (t % 4u == 0u) {
      let factor = select(exp(before - now), 0.0, before == NONE);
      total[row] = total[row] * factor + part[t] + part[t + 1u] + part[t + 2u] + part[t + 3u];
      most[row] = now;
      shrink[row] = factor;
    }
    workgroupBarrier();
${rows.map((i) => `    let shrink_${i} = shrink[thread.y + ${8 * i}u];`).join("\n")}
${rows.flatMap((i) => columns.map((c) => `    o_${i}_${c} *= shrink_${i};`)).join("\n")}
    for (var k4 = 0u; k4 < ${keyTile / 4}u; k4++) {
      if (k0 + 4u * k4 >= end) { break; }
${rows.map((i) => `      let w_${i} = weights[(thread.y + ${8 * i}u) * 16u + k4];`).join("\n")}
      for (var j = 0u; j < 4u; j++) {
        let key = min(k0 + 4u * k4 + j, end - 1u);
        let value_row = key_row(sight, tile.w, key, kv_head);
${columns
  .map(
    (c) => `        if (thread.x + ${16 * c}u < value_vectors) {
          let v = values_at(value_row, thread.x + ${16 * c}u);
${rows.map((i) => `          o_${i}_${c} += w_${i}[j] * v;`).join("\n")}
        }`,
  )
  .join("\n")}
      }
    }
    workgroupBarrier();
  }
${rows
  .map(
    (i) => `  if (thread.y + ${8 * i}u < count) {
    let row = thread.y + ${8 * i}u;
    let out = ((tile.x + row) * p.heads + head) * p.valueDim;
${columns
  .map(
    (c) => `    for (var j = 0u; j < 4u; j++) {
      let d = 4u * (thread.x + ${16 * c}u) + j;
      if (d < p.valueDim) { y[out + d] = o_${i}_${c}[j] / total[row]; }
    }`,
  )
  .join("\n")}
  }`,
  )
  .join("\n")}
}`;
  return {
    name: "attention-prefill",
    params: attentionParams,
    bindings: [
      reads("queries", rowType(keyVectors)),
      reads("keys", rowType(keyVectors)),
      reads("values", rowType(valueVectors)),
      ...(sinks ? [reads("sinks", "array<f32>")] : []),
      reads("tiles", "array<vec4u>"),
      ...(sight === "none" ? [] : [reads("rows", "array<vec4u>")]),
      ...sightBindings(sight),
      writes("y", "array<f32>"),
    ],
    code,
  };
}
