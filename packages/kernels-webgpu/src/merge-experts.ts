import { float64Code, wideWords } from "./float64-code.js";
import type { Gpu } from "./gpu.js";
import type { GpuBuffer } from "./gpu-buffer.js";
import {
  formatKey,
  type GpuMatrix,
  loadCode,
  type MatrixPart,
  matrixBindings,
  partBuffers,
  storedColumns,
  type WeightFormat,
} from "./gpu-matrix.js";
import { type KernelSource, reads, writes } from "./kernel.js";

/** How merged values are rounded and stored: to nearest, ties to even, too large ones to the largest finite one. */
export type MergedFormat = "f32" | "f16" | "bf16";

/** A block that is a sum of other blocks. */
export interface Merge {
  /** Block of the target. */
  readonly target: number;
  /** Blocks of the source in ascending order, with their coefficients, none 0. */
  readonly sources: readonly { readonly block: number; readonly factor: number }[];
}

/** Sources of the first pass of `mergeRows`; each further one adds one fewer to what it rounded. */
const passSources = 8;
const threads = 64;
/** Words of one source in a table. */
const sourceWords = 5;

/** The table of some merges: for each its target, where its sources begin and their number; then all sources. */
export function mergeTable(merges: readonly Merge[]): Uint32Array {
  const count = merges.reduce((sum, { sources }) => sum + sources.length, 0);
  const table = new Uint32Array(3 * merges.length + sourceWords * count);
  let at = 3 * merges.length;
  for (const [i, { target, sources }] of merges.entries()) {
    table.set([target, at, sources.length], 3 * i);
    for (const { block, factor } of sources) {
      table.set([block, ...wideWords(factor)], at);
      at += sourceWords;
    }
  }
  return table;
}

/** Whether a matrix can be merged on the device: it lies in one buffer. */
export const canMerge = ({ parts }: GpuMatrix) => parts.length === 1;

/**
 * `mergeRows` of core and the rounding to the format of the target, bit for bit: products and sums in float64 (`float64Code`),
 * every eighth rounded to float32. Source and target have equal rows and columns and lie in one buffer each.
 * @param table of `mergeTable`, which begins at word `start`
 */
export function mergeExperts(
  gpu: Gpu,
  source: GpuMatrix,
  target: GpuMatrix,
  table: GpuBuffer,
  { count, start = 0 }: { readonly count: number; readonly start?: number },
): void {
  const { format, rows, columns } = source;
  const to = target.format.kind;
  const [from, into] = [source.parts[0], target.parts[0]] as [MatrixPart, MatrixPart];
  if (to === "quantized" || !canMerge(source) || !canMerge(target)) {
    throw new TypeError("merged experts are floats, and they and their sources lie in one buffer each");
  }
  const kernel = gpu.kernel(`merge ${formatKey(format)} ${to}`, () => mergeSource(format, to));
  const vectors = storedColumns(columns) / 8;
  const buffers = [...partBuffers(from), table, into.codes];
  const across = Math.ceil((rows * vectors) / threads);
  gpu.commands.dispatch(kernel, buffers, { rows, vectors, start }, across, count);
}

type Param = "rows" | "vectors" | "start";

function mergeSource(format: WeightFormat, to: MergedFormat): KernelSource<Param> {
  return {
    name: "merge-experts",
    params: { rows: "u32", vectors: "u32", start: "u32" },
    bindings: [
      ...matrixBindings("w", format),
      reads("table", "array<u32>"),
      writes("merged", "array<vec4u>"),
    ],
    code: `
${float64Code}
${loadCode("w", format, "(8u * p.vectors)")}
${narrowCode[to]}
@compute @workgroup_size(${threads})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) t: u32) {
  let item = group.x * ${threads}u + t;
  if (item >= p.rows * p.vectors) { return; }
  let row = item / p.vectors;
  let k8 = item % p.vectors;
  let job = p.start + 3u * group.y;
  let first = p.start + table[job + 1u];
  let count = table[job + 2u];
  var bits: array<u32, 8>;
  for (var i = 0u; i < 8u; i++) {
    var sum = Wide(0u, 0, 0u, 0u);
    for (var s = 0u; s < count; s++) {
      let at = first + ${sourceWords}u * s;
      let factor = Wide(table[at + 1u], bitcast<i32>(table[at + 2u]), table[at + 3u], table[at + 4u]);
      let w = w_load(table[at] * p.rows + row, k8);
      let term = narrow_times(factor, bitcast<u32>(w[i / 4u][i % 4u]));
      if (s >= ${passSources}u && (s - ${passSources}u) % ${passSources - 1}u == 0u) {
        sum = narrow_times(Wide(0u, -52, 0x100000u, 0u), wide_bits(sum));
      }
      if (s == 0u) { sum = term; } else { sum = wide_sum(sum, term); }
    }
    bits[i] = narrow(wide_bits(sum));
  }
  let at = (table[job] * p.rows + row) * p.vectors + k8;
${
  to === "f32"
    ? `  merged[2u * at] = vec4u(bits[0], bits[1], bits[2], bits[3]);
  merged[2u * at + 1u] = vec4u(bits[4], bits[5], bits[6], bits[7]);`
    : `  merged[at] = vec4u(
    bits[0] | (bits[1] << 16u), bits[2] | (bits[3] << 16u),
    bits[4] | (bits[5] << 16u), bits[6] | (bits[7] << 16u));`
}
}`,
  };
}

/** WGSL of `fn narrow(bits) -> u32`: `roundToDtype` on the bits of a float32. */
const narrowCode: Readonly<Record<MergedFormat, string>> = {
  f32: "fn narrow(bits: u32) -> u32 { return bits; }",
  bf16: `fn narrow(bits: u32) -> u32 {
  if ((bits & 0x7fffffffu) >= 0x7f7f8000u) { return ((bits >> 16u) & 0x8000u) | 0x7f7fu; }
  return (bits + 0x7fffu + ((bits >> 16u) & 1u)) >> 16u;
}`,
  f16: `fn narrow(bits: u32) -> u32 {
  let sign = (bits >> 16u) & 0x8000u;
  let magnitude = bits & 0x7fffffffu;
  if (magnitude >= 0x477fe000u) { return sign | 0x7bffu; }
  if (magnitude >= 0x38800000u) {
    return sign | (((magnitude + 0xfffu + ((magnitude >> 13u) & 1u)) >> 13u) - 0x1c000u);
  }
  // Multiples of 2^-24; what is below 2^-26 is 0.
  let e = i32(magnitude >> 23u) - 127;
  if (e < -26) { return sign; }
  let kept = shift_sticky((magnitude & 0x7fffffu) | 0x800000u, 0u, u32(-3 - e)).x;
  return sign | ((kept >> 2u) + select(0u, 1u, (kept & 3u) == 3u || (kept & 7u) == 6u));
}`,
};
