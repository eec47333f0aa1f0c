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

/** Queries of a workgroup: many where sequences are long, so that keys and values are read less often. */
export type QueryTile = 16 | 64;
const keyTile = 64;
/** Dimensions of queries and keys that lie in workgroup memory at once. */
const depth = 16;

/** The tile for sequences of so many tokens in a run. */
export const queryTileFor = (tokens: number): QueryTile => (tokens > 32 ? 64 : 16);

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
 * A tile of queries of one head against tiles of 64 keys: those of the sinks, then from the first that any of them sees to the
 * last; of a block mask, those tiles of which a block is seen. Each of 16 by 16 threads has some queries that follow one another,
 * and of these sums the scores of 4 keys and some vectors of 4 dimensions of the output, in registers. Queries and keys lie in
 * workgroup memory dimension by dimension, so that one vector serves 4 of them. Maximum and sum of the softmax run along: all
 * threads of a query know its maximum, each keeps the sum over its own keys until the end.
 */
export function prefillSource(options: AttentionOptions & { readonly queryTile: QueryTile }): KernelSource {
  const { keyVectors, valueVectors, room, sinks, sight, queryTile } = options;
  const each = queryTile / 16;
  const rows = range(each);
  const columns = range(room);
  // Keys whose weights and values lie in workgroup memory at once.
  const keysAtOnce = room <= 2 ? 8 : room <= 4 ? 4 : 2;
  const queryVector = each === 4 ? "vec4f" : "f32";
  const query = (name: string, i: number | string) => (each === 4 ? `${name}[${i}]` : name);
  const inVector = (row: string) => (each === 4 ? `[${row} % 4u]` : "");
  const after = `k0 + ${keyTile}u`;
  // Behind the sinks comes the window of the first query.
  const [first, next] =
    sight === "spans"
      ? ["select(reach, 0u, sight.x > 0u)", `select(${after}, max(${after}, reach), ${after} >= sight.x)`]
      : ["reach", after];
  const code = `
const NONE = -3.4028234e38;
var<workgroup> q_tile: array<${queryVector}, ${depth * 16}>;
var<workgroup> k_tile: array<vec4f, ${depth * 16}>;
var<workgroup> w_tile: array<${queryVector}, ${keysAtOnce * 16}>;
var<workgroup> v_tile: array<vec4f, ${keysAtOnce * room * 16}>;
${rowVector("queries", "p.keyDim", keyVectors)}
${rowVector("keys", "p.keyDim", keyVectors)}
${rowVector("values", "p.valueDim", valueVectors)}
${sightCode(sight)}
fn masked(sight: vec4u, score: f32, position: u32, key: u32) -> f32 {
  return select(NONE, score * p.scale, sees(sight, position, key));
}
@compute @workgroup_size(16, 16)
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
${rows
  .map(
    (i) => `  let at_${i} = position + ${each}u * thread.y + ${i}u;
  var most_${i} = ${sinks ? "sinks[head]" : "NONE"};
  var total_${i} = ${sinks ? "select(0.0, 1.0, thread.x == 0u)" : "0.0"};
${columns.map((c) => `  var o_${i}_${c} = vec4f(0.0);`).join("\n")}`,
  )
  .join("\n")}
  let reach = first_seen(sight, position);
  for (var k0 = ${first}; k0 < end; k0 = ${next}) {
${sight === "blocks" ? `    if (!any_seen(sight, position, end - 1u, k0, k0 + ${keyTile - 1}u)) { continue; }` : ""}
${rows.map((i) => `    var s_${i} = vec4f(0.0);`).join("\n")}
    for (var d0 = 0u; d0 < key_vectors; d0 += ${depth / 4}u) {
      if (t < ${queryTile * (depth / 4)}u) {
        let row = t % ${queryTile}u;
        let v = t / ${queryTile}u;
        var value = vec4f(0.0);
        if (row < count && d0 + v < key_vectors) { value = queries_at((tile.x + row) * p.heads + head, d0 + v); }
${range(4)
  .map((d) => `        q_tile[(4u * v + ${d}u) * 16u + row / ${each}u]${inVector("row")} = value[${d}];`)
  .join("\n")}
      }
      {
        let key = t % ${keyTile}u;
        let v = t / ${keyTile}u;
        var value = vec4f(0.0);
        if (k0 + key < end && d0 + v < key_vectors) { value = keys_at(key_row(sight, tile.w, k0 + key, kv_head), d0 + v); }
${range(4)
  .map((d) => `        k_tile[(4u * v + ${d}u) * 16u + key / 4u][key % 4u] = value[${d}];`)
  .join("\n")}
      }
      workgroupBarrier();
${range(depth)
  .map(
    (d) => `      {
        let q = q_tile[${16 * d}u + thread.y];
        let k = k_tile[${16 * d}u + thread.x];
${rows.map((i) => `        s_${i} = fma(vec4f(${query("q", i)}), k, s_${i});`).join("\n")}
      }`,
  )
  .join("\n")}
      workgroupBarrier();
    }
    let key = k0 + 4u * thread.x;
${rows
  .map(
    (i) => `    s_${i} = vec4f(
      masked(sight, s_${i}.x, at_${i}, key), masked(sight, s_${i}.y, at_${i}, key + 1u),
      masked(sight, s_${i}.z, at_${i}, key + 2u), masked(sight, s_${i}.w, at_${i}, key + 3u));
    let high_${i} = max(max(s_${i}.x, s_${i}.y), max(s_${i}.z, s_${i}.w));`,
  )
  .join("\n")}
    // Queries of this tile of keys are done with.
    q_tile[16u * thread.x + thread.y] = ${queryVector}(${rows.map((i) => `high_${i}`).join(", ")});
    workgroupBarrier();
    var now = ${queryVector}(${rows.map((i) => `most_${i}`).join(", ")});
    for (var i = 0u; i < 16u; i++) { now = max(now, q_tile[16u * i + thread.y]); }
${rows
  .map(
    (i) => `    {
      let shrink = select(exp(most_${i} - ${query("now", i)}), 0.0, most_${i} == NONE);
      most_${i} = ${query("now", i)};
      s_${i} = select(exp(s_${i} - most_${i}), vec4f(0.0), s_${i} == vec4f(NONE));
      total_${i} = total_${i} * shrink + s_${i}.x + s_${i}.y + s_${i}.z + s_${i}.w;
${columns.map((c) => `      o_${i}_${c} *= shrink;`).join("\n")}
    }`,
  )
  .join("\n")}
    for (var first = 0u; first < ${keyTile}u; first += ${keysAtOnce}u) {
      if (k0 + first >= end) { break; }
      workgroupBarrier();
${range(4)
  .map(
    (j) => `      let of_${j} = 4u * thread.x + ${j}u - first;
      if (of_${j} < ${keysAtOnce}u) { w_tile[16u * of_${j} + thread.y] = ${queryVector}(${rows.map((i) => `s_${i}[${j}]`).join(", ")}); }`,
  )
  .join("\n")}
      for (var i = t; i < ${keysAtOnce * room * 16}u; i += 256u) {
        let at = k0 + first + i / ${room * 16}u;
        let v = i % ${room * 16}u;
        var value = vec4f(0.0);
        if (at < end && v < value_vectors) { value = values_at(key_row(sight, tile.w, at, kv_head), v); }
        v_tile[i] = value;
      }
      workgroupBarrier();
${range(keysAtOnce)
  .map(
    (j) => `      {
        let w = w_tile[${16 * j}u + thread.y];
${columns
  .map(
    (c) => `        let v_${c} = v_tile[${(j * room + c) * 16}u + thread.x];
${rows.map((i) => `        o_${i}_${c} = fma(vec4f(${query("w", i)}), v_${c}, o_${i}_${c});`).join("\n")}`,
  )
  .join("\n")}
      }`,
  )
  .join("\n")}
    }
    workgroupBarrier();
  }
  q_tile[16u * thread.x + thread.y] = ${queryVector}(${rows.map((i) => `total_${i}`).join(", ")});
  workgroupBarrier();
  var whole = ${queryVector}(0.0);
  for (var i = 0u; i < 16u; i++) { whole += q_tile[16u * i + thread.y]; }
${rows
  .map(
    (i) => `  if (${each}u * thread.y + ${i}u < count) {
    let out = ((tile.x + ${each}u * thread.y + ${i}u) * p.heads + head) * p.valueDim;
${columns
  .map(
    (c) => `    for (var j = 0u; j < 4u; j++) {
      let d = 4u * (thread.x + ${16 * c}u) + j;
      if (d < p.valueDim) { y[out + d] = o_${i}_${c}[j] / ${query("whole", i)}; }
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
