import type { QuantizedMatrix, TensorRef } from "@coppice/core";
import type { WeightFormat } from "@coppice/kernels-webgpu";

/** The narrowest format that holds every value of a tensor exactly. */
export function floatFormat({ dtype, scales }: TensorRef): WeightFormat {
  // FP4 times a power of two has 2 bits of mantissa.
  if (scales) return { kind: scales.format === "mxfp4" ? "bf16" : "f32" };
  return { kind: dtype === "BF16" ? "bf16" : dtype === "F16" ? "f16" : "f32" };
}

/** The format of a tensor that is stored as codes and is read as such; undefined for others. */
function codesFormat({ scales, view, shape }: TensorRef): WeightFormat | undefined {
  if (scales?.format !== "packed" || view || shape.length !== 2) return undefined;
  const { bits, columns, zeroPoints } = scales;
  // Rows of codes are read 8 columns at a time.
  if ((shape[1] as number) % columns !== 0 || columns % 8 !== 0) return undefined;
  return { kind: "quantized", bits, groupSize: columns, zeros: zeroPoints !== undefined };
}

/**
 * One format for tensors that lie together: codes if all have the same, else floats.
 * @param wide whether floats are widened to float32
 */
export function commonFormat(refs: readonly TensorRef[], quantized: boolean, wide = false): WeightFormat {
  const first = refs[0] as TensorRef;
  const equal = (formats: readonly (WeightFormat | undefined)[]) =>
    formats.every((format) => JSON.stringify(format) === JSON.stringify(formats[0]));
  const codes = quantized ? refs.map(codesFormat) : [];
  if (codes[0] && equal(codes)) return codes[0];
  return !wide && equal(refs.map(floatFormat)) ? floatFormat(first) : { kind: "f32" };
}

/** Rows of two matrices of equal form in turn. */
export function interleave(first: Float32Array, second: Float32Array, columns: number): Float32Array {
  return inTurn(first, second, columns, new Float32Array(2 * first.length));
}

export function interleaveCodes(first: QuantizedMatrix, second: QuantizedMatrix): QuantizedMatrix {
  const { rows } = first;
  const bytes = (a: Uint8Array, b: Uint8Array) => inTurn(a, b, a.length / rows, new Uint8Array(2 * a.length));
  return {
    ...first,
    rows: 2 * rows,
    codes: bytes(first.codes, second.codes),
    scales: interleave(first.scales, second.scales, first.scales.length / rows),
    ...(first.zeroPoints && second.zeroPoints && { zeroPoints: bytes(first.zeroPoints, second.zeroPoints) }),
  };
}

function inTurn<T extends Float32Array | Uint8Array>(first: T, second: T, size: number, out: T): T {
  for (let row = 0; row * size < first.length; row++) {
    out.set(first.subarray(row * size, (row + 1) * size), 2 * row * size);
    out.set(second.subarray(row * size, (row + 1) * size), (2 * row + 1) * size);
  }
  return out;
}
