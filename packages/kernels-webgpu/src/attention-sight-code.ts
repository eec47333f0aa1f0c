import { type KernelBinding, reads } from "./kernel.js";

/**
 * What limits which keys a query sees, beside what comes later: window and chunk of the model (`none`), a span per KV head of
 * every sequence (`spans`), or a block mask per sequence (`blocks`).
 */
export type SightKind = "none" | "spans" | "blocks";

export const attentionParams = {
  heads: "u32",
  group: "u32",
  keyDim: "u32",
  valueDim: "u32",
  scale: "f32",
  window: "u32",
  chunk: "u32",
  /** First entry of the table of spans. */
  sights: "u32",
  /** Rows from one position of a KV head to the next. */
  stride: "u32",
} as const;

export const sightBindings = (kind: SightKind): KernelBinding[] =>
  kind === "none" ? [] : [reads("sights", kind === "spans" ? "array<vec4u>" : "array<u32>")];

/**
 * WGSL of what attention kernels ask about sights; `p` has `attentionParams`, at least `heads` and `group`:
 *
 * * `sight_of(sequence, head)`: a sight, to be handed to the others;
 * * `first_seen(sight, position)`: the first key that a position sees, sinks aside;
 * * `sees(sight, position, key)`;
 * * `seen_keys(sight, position)`, `seen_key(sight, position, n)`: how many a position sees, and the n-th (not of `blocks`);
 * * `key_row(sight, start, key, kv_head)`: row of keys and values, `start` being that of position 0.
 */
export function sightCode(kind: SightKind): string {
  if (kind === "spans") return spanCode;
  const plainRow = `fn key_row(sight: vec4u, start: u32, key: u32, kv_head: u32) -> u32 {
  return (start + key) * (p.heads / p.group) + kv_head;
}`;
  return `${kind === "blocks" ? blockCode : plainCode}\n${plainRow}`;
}

const plainCode = `fn sight_of(sequence: u32, head: u32) -> vec4u { return vec4u(0u); }
fn first_seen(sight: vec4u, position: u32) -> u32 {
  var first = 0u;
  if (p.window > 0u && position + 1u > p.window) { first = position + 1u - p.window; }
  if (p.chunk > 0u) { first = max(first, position - position % p.chunk); }
  return first;
}
fn sees(sight: vec4u, position: u32, key: u32) -> bool { return key <= position && key >= first_seen(sight, position); }
fn seen_keys(sight: vec4u, position: u32) -> u32 { return position + 1u - first_seen(sight, position); }
fn seen_key(sight: vec4u, position: u32, n: u32) -> u32 { return first_seen(sight, position) + n; }`;

/** A sight is sinks, window (0: all), row of position 0, and places of a ring for the positions behind the sinks (0: no ring). */
const spanCode = `fn sight_of(sequence: u32, head: u32) -> vec4u {
  return sights[p.sights + sequence * (p.heads / p.group) + head / p.group];
}
fn first_seen(sight: vec4u, position: u32) -> u32 {
  return select(0u, position + 1u - sight.y, sight.y > 0u && position + 1u > sight.y);
}
fn sees(sight: vec4u, position: u32, key: u32) -> bool {
  return key <= position && (key < sight.x || key >= first_seen(sight, position));
}
fn seen_keys(sight: vec4u, position: u32) -> u32 {
  return select(position + 1u, min(position + 1u, sight.x + sight.y), sight.y > 0u);
}
fn seen_key(sight: vec4u, position: u32, n: u32) -> u32 {
  return select(position + 1u - seen_keys(sight, position) + n, n, n < sight.x);
}
fn key_row(sight: vec4u, start: u32, key: u32, kv_head: u32) -> u32 {
  let in_ring = sight.w > 0u && key >= sight.x;
  return sight.z + p.stride * select(key, sight.x + (key - sight.x) % max(sight.w, 1u), in_ring);
}`;

/** A sight is tokens per block (0: all is seen), words per row of blocks, and the first word of the layout. */
const blockCode = `fn sight_of(sequence: u32, head: u32) -> vec4u {
  let at = 4u * sequence;
  let words = (sights[at + 1u] + 31u) / 32u;
  let own_layout = head % max(sights[at + 2u], 1u);
  return vec4u(sights[at], words, sights[at + 3u] + own_layout * sights[at + 1u] * words, 0u);
}
fn first_seen(sight: vec4u, position: u32) -> u32 { return 0u; }
fn sees_block(sight: vec4u, row: u32, column: u32) -> bool {
  return ((sights[sight.z + row * sight.y + column / 32u] >> (column % 32u)) & 1u) == 1u;
}
fn sees(sight: vec4u, position: u32, key: u32) -> bool {
  if (key > position) { return false; }
  return sight.x == 0u || sees_block(sight, position / sight.x, key / sight.x);
}
// Whether any of the positions from first to last sees any of the keys.
fn any_seen(sight: vec4u, first: u32, last: u32, first_key: u32, last_key: u32) -> bool {
  if (sight.x == 0u) { return true; }
  for (var row = first / sight.x; row <= last / sight.x; row++) {
    for (var column = first_key / sight.x; column <= min(last_key / sight.x, row); column++) {
      if (sees_block(sight, row, column)) { return true; }
    }
  }
  return false;
}`;
