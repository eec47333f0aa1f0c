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
  /** [rows, columns / groupSize], of quantized matrices: scales, or pairs of scale and zero point. */
  readonly scales?: GpuBuffer;
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
  return rows * (rowBytes(format, columns) + scaleBytes(format, columns));
}

/** Bytes of the scales of one row. */
function scaleBytes(format: WeightFormat, columns: number): number {
  return format.kind === "quantized" ? (columns / format.groupSize) * (format.zeros ? 8 : 4) : 0;
}

/** An empty matrix in as many parts as the device's binding limit asks for. */
export function createMatrix(
  gpu: Gpu,
  { format, blocks, rows, columns }: Omit<GpuMatrix, "parts">,
  label: string,
): GpuMatrix {
  const scales = scaleBytes(format, columns);
  const blockBytes = rows * Math.max(rowBytes(format, columns), scales);
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
    parts.push({
      first,
      count,
      codes: gpu.buffer(count * rows * rowBytes(format, columns), label),
      ...(scales > 0 && { scales: gpu.buffer(count * rows * scales, `${label} scales`) }),
    });
  }
  return { format, blocks, rows, columns, parts };
}

export function disposeMatrix({ parts }: GpuMatrix): void {
  for (const { codes, scales } of parts) for (const one of [codes, scales]) one?.dispose();
}

/**
 * Writes float32 values into rows from `row` on, counted through all blocks. Values must be ones that the format holds: they are
 * cut off to it, not rounded.
 * @param values whole rows
 */
export function writeRows(gpu: Gpu, matrix: GpuMatrix, row: number, values: Float32Array): void {
  const { columns, format } = matrix;
  eachStretch(matrix, row, values.length / columns, ({ codes }, at, from, to) => {
    const stretch = values.subarray(from * columns, to * columns);
    gpu.write(codes, packRows(stretch, columns, format), at * rowBytes(format, columns));
  });
}

/** Writes a quantized matrix into rows from `row` on, counted through all blocks. */
export function writeQuantized(gpu: Gpu, matrix: GpuMatrix, row: number, from: QuantizedMatrix): void {
  const { columns, format } = matrix;
  if (format.kind !== "quantized") throw new TypeError("the matrix does not hold codes");
  const groups = columns / format.groupSize;
  const codeBytes = rowBytes(format, columns);
  const zeros = from.zeroPoints && unpackBits(from.zeroPoints, from.rows, groups, from.bits);
  const middle = 2 ** (from.bits - 1);
  const scales = format.zeros
    ? Float32Array.from({ length: 2 * from.scales.length }, (_, i) =>
        i % 2 === 0 ? (from.scales[i / 2] as number) : (zeros?.[(i - 1) / 2] ?? middle),
      )
    : from.scales;
  const perRow = scales.length / from.rows;
  eachStretch(matrix, row, from.rows, (part, at, start, end) => {
    gpu.write(part.codes, from.codes.subarray(start * codeBytes, end * codeBytes), at * codeBytes);
    gpu.write(part.scales as GpuBuffer, scales.subarray(start * perRow, end * perRow), 4 * at * perRow);
  });
}

/** The parts that rows from `row` on lie in: the row of the part, and the first and last of the given rows. */
function eachStretch(
  { rows, parts }: GpuMatrix,
  row: number,
  count: number,
  visit: (part: MatrixPart, at: number, from: number, to: number) => void,
): void {
  for (const part of parts) {
    const first = part.first * rows;
    const from = Math.max(first, row);
    const to = Math.min(first + part.count * rows, row + count);
    if (from < to) visit(part, from - first, from - row, to - row);
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

/** Types of so many words. */
const words: Readonly<Record<number, string>> = { 1: "u32", 2: "vec2u", 4: "vec4u" };

/**
 * Bindings of a part under the names `<name>` and `<name>_scales`.
 * @param eights of columns of codes that are read at once: 1, or `eightsRead`
 */
export function matrixBindings(name: string, format: WeightFormat, eights = 1): KernelBinding[] {
  switch (format.kind) {
    case "f32":
      return [reads(name, "array<vec4f>")];
    case "f16":
    case "bf16":
      return [reads(name, "array<vec4u>")];
    case "quantized":
      return [
        reads(name, `array<${words[Math.max(1, (eights * format.bits) / 4)]}>`),
        reads(`${name}_scales`, format.zeros ? "array<vec2f>" : "array<f32>"),
      ];
  }
}

/** The buffers of a part in the order of its bindings. */
export const partBuffers = ({ codes, scales }: MatrixPart) => (scales ? [codes, scales] : [codes]);

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
      const factors = zeros
        ? `let scale = ${name}_scales[group].x;
  let zero = ${name}_scales[group].y;`
        : `let scale = ${name}_scales[group];
  let zero = ${2 ** (bits - 1)}.0;`;
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
  ${factors}
  ${codes}
  return array<vec4f, 2>((a - zero) * scale, (b - zero) * scale);
}`;
    }
  }
}
