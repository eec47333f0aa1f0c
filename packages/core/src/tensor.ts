import type { QuantizedBits, QuantizedMatrix } from "./quantized-matrix.js";

/** Element types of safetensors files that Coppice reads. */
export type DType =
  | "F64"
  | "F32"
  | "F16"
  | "BF16"
  | "F8_E4M3"
  | "F8_E5M2"
  | "F8_E8M0"
  | "I64"
  | "I32"
  | "I16"
  | "I8"
  | "U64"
  | "U32"
  | "U16"
  | "U8"
  | "BOOL";

export const dtypeBytes: Readonly<Record<DType, number>> = {
  F64: 8,
  F32: 4,
  F16: 2,
  BF16: 2,
  F8_E4M3: 1,
  F8_E5M2: 1,
  F8_E8M0: 1,
  I64: 8,
  I32: 4,
  I16: 2,
  I8: 1,
  U64: 8,
  U32: 4,
  U16: 2,
  U8: 1,
  BOOL: 1,
};

/** A tensor that lies in a file: where it is and what it is, without its values. */
export interface TensorRef {
  readonly name: string;
  readonly dtype: DType;
  /** Shape of the values that a reader gives; how they are stored may differ, see `view` and `scales`. */
  readonly shape: readonly number[];
  /** File of the checkpoint folder that holds it. */
  readonly file: string;
  /** First byte in that file, and the byte after the last. */
  readonly begin: number;
  readonly end: number;
  /** Absent: the values lie row by row, each once, from `begin` to `end`. */
  readonly view?: TensorView;
  /** Absent: the stored values are the values. */
  readonly scales?: TensorScales;
}

/**
 * How a tensor lies in stored elements that hold more than it, or hold it in another order: value [i, j, ...] is the
 * element `offset + i * strides[0] + j * strides[1] + ...` of those from `begin` to `end`. So GPT-OSS keeps an
 * expert's gate and up as even and odd columns of one matrix [hidden, 2 width].
 */
export interface TensorView {
  readonly offset: number;
  /** One per axis of `shape`, in elements. */
  readonly strides: readonly number[];
}

/**
 * Scales of stored values that are quantized in blocks of `rows` by `columns` elements of the stored matrix
 * (`stored`), which begin at its first element; blocks at the far edges may be cut off.
 *
 * - `scaled`: value = stored * scale (fp8 checkpoints: `weight_scale_inv` of DeepSeek-V3 in blocks of 128 x 128, one
 *   scale per row, or one for all). `scales` has shape [ceil(R / rows), ceil(C / columns)].
 * - `mxfp4`: U8 bytes that each hold two FP4 E2M1 values, low nibble first, in rows of blocks of 32;
 *   value = fp4 * 2^(scale - 127), scales U8 (OCP Microscaling Formats 1.0). GPT-OSS `*_blocks` and `*_scales`.
 * - `packed`: I32 words of integer codes, low bits first, in groups of `columns` of one row; value = (code - zero point) *
 *   scale, as `QuantizedMatrix` says (compressed-tensors `pack-quantized`, `weight_packed` and `weight_scale`).
 */
export type TensorScales = BlockScales | PackedScales;

interface ScalesBase {
  /** Shape [R, C] of the stored matrix, in values. */
  readonly stored: readonly [number, number];
  readonly rows: number;
  readonly columns: number;
  readonly scales: TensorRef;
}

export interface BlockScales extends ScalesBase {
  readonly format: "scaled" | "mxfp4";
}

export interface PackedScales extends ScalesBase {
  readonly format: "packed";
  readonly bits: QuantizedBits;
  /** I32 words [ceil(R * bits / 32), C / columns], packed along the rows; absent: all are 2^(bits - 1). */
  readonly zeroPoints?: TensorRef;
}

/** Reads weights lazily, each by byte range, widened to float32. */
export interface WeightReader {
  /**
   * Values of `ref` as float32, row-major, views and scales resolved. Floats of at most 32 bits widen exactly; integers
   * must be representable.
   * Every call reads the file: a caller that needs the values twice keeps them.
   * When `into` is given it is filled (its length must equal the element count) and returned.
   * @throws COPPICE_FORMAT_TRUNCATED, COPPICE_IO_READ, COPPICE_FORMAT_NAN (values must be finite)
   */
  read(ref: TensorRef, options?: { into?: Float32Array; signal?: AbortSignal }): Promise<Float32Array>;
  /**
   * The codes and scales of a matrix that is stored so (`packed`), or undefined for others: `dequantizeMatrix` of it is
   * what `read` gives. Absent in readers that have none.
   * @throws as `read`
   */
  readQuantized?(ref: TensorRef, options?: { signal?: AbortSignal }): Promise<QuantizedMatrix | undefined>;
}

export function elementCount(shape: readonly number[]): number {
  return shape.reduce((product, size) => product * size, 1);
}

/** Bytes that the values of `ref` take where they are stored: its own share of a stack, scales included. */
export function storedBytes(ref: TensorRef): number {
  const { dtype, shape, scales } = ref;
  const count = elementCount(shape);
  if (!scales) return count * dtypeBytes[dtype];
  const bits =
    scales.format === "mxfp4" ? 4 : scales.format === "packed" ? scales.bits : 8 * dtypeBytes[dtype];
  const share = count / (scales.stored[0] * scales.stored[1]);
  const beside = [scales.scales, ...("zeroPoints" in scales ? [scales.zeroPoints] : [])].filter(
    (one) => one !== undefined,
  );
  return (
    (count * bits) / 8 +
    share * beside.reduce((sum, one) => sum + elementCount(one.shape) * dtypeBytes[one.dtype], 0)
  );
}
