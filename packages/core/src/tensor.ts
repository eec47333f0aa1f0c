/** Element types of safetensors files that Coppice reads. */
export type DType = "F64" | "F32" | "F16" | "BF16" | "F8_E4M3" | "I64" | "I32" | "I16" | "I8" | "U8" | "BOOL";

export const dtypeBytes: Readonly<Record<DType, number>> = {
  F64: 8,
  F32: 4,
  F16: 2,
  BF16: 2,
  F8_E4M3: 1,
  I64: 8,
  I32: 4,
  I16: 2,
  I8: 1,
  U8: 1,
  BOOL: 1,
};

/** A tensor that lies in a file: where it is and what it is, without its values. */
export interface TensorRef {
  readonly name: string;
  readonly dtype: DType;
  readonly shape: readonly number[];
  /** File of the checkpoint folder that holds it. */
  readonly file: string;
  /** First byte in that file, and the byte after the last. */
  readonly begin: number;
  readonly end: number;
}

/** Reads weights lazily, each by byte range, widened to float32. */
export interface WeightReader {
  /**
   * Values of `ref` as float32, row-major. F16, BF16 and F8_E4M3 widen exactly; integers must be representable.
   * Every call reads the file: a caller that needs the values twice keeps them.
   * When `into` is given it is filled (its length must equal the element count) and returned.
   * @throws COPPICE_FORMAT_TRUNCATED, COPPICE_IO_READ, COPPICE_FORMAT_NAN (values must be finite)
   */
  read(ref: TensorRef, options?: { into?: Float32Array; signal?: AbortSignal }): Promise<Float32Array>;
}

export function elementCount(shape: readonly number[]): number {
  return shape.reduce((product, size) => product * size, 1);
}
