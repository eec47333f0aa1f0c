import type { Gpu } from "./gpu.js";
import type { GpuBuffer } from "./gpu-buffer.js";
import { reads, writes } from "./kernel.js";
import { groupIndex, mainOf, spreadThreads } from "./spread.js";

export interface RotaryCall {
  /** [tokens, heads, headDim], overwritten. */
  readonly x: GpuBuffer;
  readonly tokens: number;
  readonly heads: number;
  readonly headDim: number;
  /** First rotating dimension of a head, and how many rotate. */
  readonly offset: number;
  readonly dimensions: number;
  /** Whether dimension 2i pairs with 2i + 1, else i with i + dimensions / 2. */
  readonly interleaved: boolean;
  /** cos and sin in turn, [rows, dimensions / 2, 2] f32. */
  readonly table: GpuBuffer;
  /** [tokens] u32: row of the table for each token. */
  readonly rows: GpuBuffer;
}

const threads = 64;

/** Rotates pairs of dimensions of queries or keys in place (RoPE, arXiv 2104.09864): (a c - b s, b c + a s). */
export function rotate(gpu: Gpu, call: RotaryCall): void {
  const { x, tokens, heads, headDim, offset, dimensions, interleaved, table, rows } = call;
  const half = dimensions / 2;
  const kernel = gpu.kernel("rotary", () => ({
    name: "rotary",
    params: {
      count: "u32",
      heads: "u32",
      headDim: "u32",
      offset: "u32",
      half: "u32",
      step: "u32",
      partner: "u32",
    },
    bindings: [reads("table", "array<vec2f>"), reads("rows", "array<u32>"), writes("x", "array<f32>")],
    code: `${mainOf(threads)} {
  let i = ${groupIndex} * ${threads}u + t;
  if (i >= p.count) { return; }
  let pair = i % p.half;
  let head = i / p.half;
  let turn = table[rows[head / p.heads] * p.half + pair];
  let at = head * p.headDim + p.offset + pair * p.step;
  let a = x[at];
  let b = x[at + p.partner];
  x[at] = a * turn.x - b * turn.y;
  x[at + p.partner] = b * turn.x + a * turn.y;
}`,
  }));
  const count = tokens * heads * half;
  const [step, partner] = interleaved ? [2, 1] : [1, half];
  const params = { count, heads, headDim, offset, half, step, partner };
  gpu.commands.dispatch(kernel, [table, rows, x], params, ...spreadThreads(count, threads));
}

export interface UnfoldCall {
  /** [tokens, heads, nopeDim + valueDim]: of each head its plain key part, then its value. */
  readonly unfolded: GpuBuffer;
  /** [tokens, rank + rotaryDim], the last of which are the rotated key part of all heads. */
  readonly down: GpuBuffer;
  /** [tokens, heads, nopeDim + rotaryDim] */
  readonly keys: GpuBuffer;
  /** [tokens, heads, valueDim] */
  readonly values: GpuBuffer;
  readonly tokens: number;
  readonly heads: number;
  readonly nopeDim: number;
  readonly valueDim: number;
  readonly rank: number;
  readonly rotaryDim: number;
}

/** Keys and values of latent attention (`LatentAttentionSpec`), unfolded per head. */
export function unfoldLatent(gpu: Gpu, call: UnfoldCall): void {
  const { unfolded, down, keys, values, tokens, heads, nopeDim, valueDim, rank, rotaryDim } = call;
  const kernel = gpu.kernel("unfold-latent", () => ({
    name: "unfold-latent",
    params: { count: "u32", heads: "u32", nope: "u32", value: "u32", rank: "u32", rotary: "u32" },
    bindings: [
      reads("unfolded", "array<f32>"),
      reads("down", "array<f32>"),
      writes("keys", "array<f32>"),
      writes("values", "array<f32>"),
    ],
    code: `${mainOf(threads)} {
  let i = ${groupIndex} * ${threads}u + t;
  if (i >= p.count) { return; }
  let size = p.nope + p.rotary + p.value;
  let head = i / size;
  let d = i % size;
  let source = head * (p.nope + p.value);
  if (d < p.nope) { keys[head * (p.nope + p.rotary) + d] = unfolded[source + d]; }
  else if (d < p.nope + p.rotary) {
    keys[head * (p.nope + p.rotary) + d] = down[head / p.heads * (p.rank + p.rotary) + p.rank + d - p.nope];
  } else { values[head * p.value + d - p.nope - p.rotary] = unfolded[source + d - p.rotary]; }
}`,
  }));
  const count = tokens * heads * (nopeDim + rotaryDim + valueDim);
  const params = { count, heads, nope: nopeDim, value: valueDim, rank, rotary: rotaryDim };
  gpu.commands.dispatch(kernel, [unfolded, down, keys, values], params, ...spreadThreads(count, threads));
}
