import { CoppiceError, type QuantizedMatrix, unpackBits } from "@coppice/core";
import type { Gpu } from "./gpu.js";
import type { GpuBuffer } from "./gpu-buffer.js";
import { type KernelBinding, reads } from "./kernel.js";

/** How weights lie on the device. `f16` and `bf16` are pairs in a word and need no feature of the device. */
export type WeightFormat =
  | { readonly kind: "f32" | "f16" | "bf16" }
  | {
      /** Codes and scales of `QuantizedMatrix`. */
      readonly kind: "quantized";
      readonly bits: 2 | 4 | 8;
      readonly groupSize: number;
      /** Whether zero points are stored; else all are 2^(bits - 1). */
      readonly zeros: boolean;
    };

/** A stretch of whole blocks of a matrix in buffers of its own. */
export interface MatrixPart {
  /** First block, and how many. */
  readonly first: number;
  readonly count: number;
  readonly codes: GpuBuffer;
  /** [rows, columns / groupSize]; of quantized matrices. */
  readonly scales?: GpuBuffer;
  /** One byte per group; of quantized matrices with zero points. */
  readonly zeros?: GpuBuffer;
}

/**
 * Matrices [blocks, rows, columns] that lie behind one another: the experts of a layer, or one matrix in blocks of one row.
 * No buffer is larger than the device binds. Rows are padded with zeros to a multiple of 8 columns.
 */
export interface GpuMatrix {
  readonly format: WeightFormat;
  readonly blocks: number;
  readonly rows: number;
  readonly columns: number;
  readonly parts: readonly MatrixPart[];
}

/** Columns of a stored row. */
export const storedColumns = (columns: number) => Math.ceil(columns / 8) * 8;

/** A text that is equal for equal formats; part of the keys of kernels. */
export function formatKey(format: WeightFormat): string {
  if (format.kind !== "quantized") return format.kind;
  return `q${format.bits}g${format.groupSize}${format.zeros ? "z" : ""}`;
}

const bitsOf = (format: WeightFormat) =>
  format.kind === "quantized" ? format.bits : format.kind === "f32" ? 32 : 16;

/** Bytes of one row of codes. */
export function rowBytes(format: WeightFormat, columns: number): number {
  return (storedColumns(columns) * bitsOf(format)) / 8;
}

/** Bytes that a matrix takes on the device. */
export function matrixBytes(format: WeightFormat, rows: number, columns: number): number {
  const perRow = format.kind === "quantized" ? (columns / format.groupSize) * (format.zeros ? 5 : 4) : 0;
  return rows * (rowBytes(format, columns) + perRow);
}

/** An empty matrix in as many parts as the device's binding limit asks for. */
export function createMatrix(
  gpu: Gpu,
  { format, blocks, rows, columns }: Omit<GpuMatrix, "parts">,
  label: string,
): GpuMatrix {
  const blockBytes = rows * rowBytes(format, columns);
  const most = Math.floor(gpu.maxBindingBytes / blockBytes);
  if (most === 0) {
    throw new CoppiceError(
      "COPPICE_BACKEND_UNSUPPORTED",
      `one matrix [${rows}, ${columns}] of ${label} takes ${blockBytes} bytes; the device binds at most ${gpu.maxBindingBytes}`,
      { details: { blockBytes, maxBindingBytes: gpu.maxBindingBytes } },
    );
  }
  const parts: MatrixPart[] = [];
  for (let first = 0; first < blocks; first += most) {
    const count = Math.min(most, blocks - first);
    const groups = format.kind === "quantized" ? (count * rows * columns) / format.groupSize : 0;
    parts.push({
      first,
      count,
      codes: gpu.buffer(count * blockBytes, label),
      ...(groups > 0 && { scales: gpu.buffer(4 * groups, `${label} scales`) }),
      ...(format.kind === "quantized" &&
        format.zeros && { zeros: gpu.buffer(groups, `${label} zero points`) }),
    });
  }
  return { format, blocks, rows, columns, parts };
}

export function disposeMatrix({ parts }: GpuMatrix): void {
  for (const { codes, scales, zeros } of parts) for (const one of [codes, scales, zeros]) one?.dispose();
}

/**
 * Writes float32 values into blocks from `block` on. Values must be ones that the format holds: they are cut off to it, not rounded.
 * @param values whole blocks
 */
export function writeBlocks(gpu: Gpu, matrix: GpuMatrix, block: number, values: Float32Array): void {
  const { rows, columns, format, parts } = matrix;
  const size = rows * columns;
  for (const { first, count, codes } of parts) {
    const from = Math.max(first, block);
    const to = Math.min(first + count, block + values.length / size);
    if (from >= to) continue;
    const stretch = values.subarray((from - block) * size, (to - block) * size);
    const byte = (from - first) * rows * rowBytes(format, columns);
    gpu.write(codes, packRows(stretch, columns, format), byte);
  }
}

/** Writes a quantized matrix into one block, or over all of them when they are its rows. */
export function writeQuantized(gpu: Gpu, matrix: GpuMatrix, block: number, from: QuantizedMatrix): void {
  const { rows, columns, format, parts } = matrix;
  if (format.kind !== "quantized") throw new TypeError("the matrix does not hold codes");
  const groups = columns / format.groupSize;
  const zeros = from.zeroPoints && unpackBits(from.zeroPoints, from.rows, groups, from.bits);
  for (const part of parts) {
    const start = Math.max(part.first, block);
    const end = Math.min(part.first + part.count, block + from.rows / rows);
    if (start >= end) continue;
    const cut = <T extends Float32Array | Uint8Array>(values: T, perRow: number) =>
      values.subarray((start - block) * rows * perRow, (end - block) * rows * perRow) as T;
    const at = (start - part.first) * rows;
    gpu.write(part.codes, cut(from.codes, rowBytes(format, columns)), at * rowBytes(format, columns));
    gpu.write(part.scales as GpuBuffer, cut(from.scales, groups), 4 * at * groups);
    if (zeros) gpu.write(part.zeros as GpuBuffer, cut(zeros, groups), at * groups);
  }
}

const word = new Uint32Array(1);
const float = new Float32Array(word.buffer);

function packRows(values: Float32Array, columns: number, format: WeightFormat): Float32Array | Uint8Array {
  const stored = storedColumns(columns);
  const rows = values.length / columns;
  if (format.kind === "f32") {
    if (stored === columns) return values;
    const out = new Float32Array(rows * stored);
    for (let row = 0; row < rows; row++)
      out.set(values.subarray(row * columns, (row + 1) * columns), row * stored);
    return out;
  }
  const out = new Uint16Array(rows * stored);
  const narrow = format.kind === "bf16" ? bfloat16 : float16;
  for (let row = 0, at = 0; row < rows; row++) {
    for (let i = 0; i < columns; i++) out[row * stored + i] = narrow(values[at++] as number);
  }
  return new Uint8Array(out.buffer);
}

function bfloat16(value: number): number {
  float[0] = value;
  return (word[0] as number) >>> 16;
}

/** Bits of a value that float16 holds exactly. */
function float16(value: number): number {
  float[0] = value;
  const bits = word[0] as number;
  const sign = (bits >>> 16) & 0x8000;
  const exponent = ((bits >>> 23) & 0xff) - 127;
  if (exponent === -127) return sign;
  const mantissa = bits & 0x7fffff;
  if (exponent < -14) return sign | ((mantissa | 0x800000) >>> (-1 - exponent));
  return sign | ((exponent + 15) << 10) | (mantissa >>> 13);
}

/** Bindings of a part under the names `<name>`, `<name>_scales` and `<name>_zeros`. */
export function matrixBindings(name: string, format: WeightFormat): KernelBinding[] {
  switch (format.kind) {
    case "f32":
      return [reads(name, "array<vec4f>")];
    case "f16":
    case "bf16":
      return [reads(name, "array<vec4u>")];
    case "quantized":
      return [
        reads(name, format.bits === 8 ? "array<vec2u>" : "array<u32>"),
        reads(`${name}_scales`, "array<f32>"),
        ...(format.zeros ? [reads(`${name}_zeros`, "array<u32>")] : []),
      ];
  }
}

/** The buffers of a part in the order of its bindings. */
export const partBuffers = ({ codes, scales, zeros }: MatrixPart) =>
  [codes, scales, zeros].filter((one) => one !== undefined);

/**
 * WGSL of `fn <name>_load(row, k8) -> array<vec4f, 2>`: the weights of columns 8 k8 to 8 k8 + 7 of a row of the part,
 * dequantised in registers.
 * @param columns WGSL expression of the number of stored columns
 */
export function loadCode(name: string, format: WeightFormat, columns: string): string {
  const head = `fn ${name}_load(row: u32, k8: u32) -> array<vec4f, 2> {
  let at = row * (${columns} / 8u) + k8;`;
  switch (format.kind) {
    case "f32":
      return `${head}
  return array<vec4f, 2>(${name}[2u * at], ${name}[2u * at + 1u]);
}`;
    case "f16":
      return `${head}
  let w = ${name}[at];
  return array<vec4f, 2>(
    vec4f(unpack2x16float(w.x), unpack2x16float(w.y)),
    vec4f(unpack2x16float(w.z), unpack2x16float(w.w)));
}`;
    case "bf16":
      return `${head}
  let w = ${name}[at];
  let low = bitcast<vec4f>(w << vec4u(16u));
  let high = bitcast<vec4f>(w & vec4u(0xffff0000u));
  return array<vec4f, 2>(vec4f(low.x, high.x, low.y, high.y), vec4f(low.z, high.z, low.w, high.w));
}`;
    case "quantized": {
      const { bits, groupSize, zeros } = format;
      const zero = zeros
        ? `f32((${name}_zeros[group / 4u] >> (8u * (group % 4u))) & 0xffu)`
        : `${2 ** (bits - 1)}.0`;
      const codes = {
        8: `let w = ${name}[at];
  let a = vec4f((vec4u(w.x) >> vec4u(0u, 8u, 16u, 24u)) & vec4u(255u));
  let b = vec4f((vec4u(w.y) >> vec4u(0u, 8u, 16u, 24u)) & vec4u(255u));`,
        4: `let w = ${name}[at];
  let a = vec4f((vec4u(w) >> vec4u(0u, 4u, 8u, 12u)) & vec4u(15u));
  let b = vec4f((vec4u(w) >> vec4u(16u, 20u, 24u, 28u)) & vec4u(15u));`,
        2: `let w = ${name}[at / 2u] >> (16u * (at % 2u));
  let a = vec4f((vec4u(w) >> vec4u(0u, 2u, 4u, 6u)) & vec4u(3u));
  let b = vec4f((vec4u(w) >> vec4u(8u, 10u, 12u, 14u)) & vec4u(3u));`,
      }[bits];
      return `${head}
  let group = at / ${groupSize / 8}u;
  let scale = ${name}_scales[group];
  let zero = ${zero};
  ${codes}
  return array<vec4f, 2>((a - zero) * scale, (b - zero) * scale);
}`;
    }
  }
}
