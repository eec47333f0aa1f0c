import { CoppiceError, dtypeBytes, elementCount, type TensorRef } from "@coppice/core";
import { matrixRows } from "../matrix-rows.js";
import { withScales } from "./quantization.js";
import { checkShape, type TensorTaker } from "./tensor-taker.js";

/** Values that share a scale, and bytes that hold them, in MXFP4. */
const fp4Block = 32;
const fp4BlockBytes = 16;

/** Matrices of all experts, one after the other. */
export interface Stack {
  /** As stored: MXFP4 stacks have other axes than the matrices. */
  readonly tensor: TensorRef;
  /** True: bytes of MXFP4, whose rows are always the outputs. */
  readonly isFp4: boolean;
  readonly scales: TensorRef | undefined;
}

/** The stack of this name, plain, with fp8 scales or as MXFP4 blocks; its axes are checked by `matrixOf`. */
export function takeStack(take: TensorTaker, name: string, shape: readonly number[]): Stack {
  if (!take.index.has(name) && take.index.has(`${name}_blocks`)) {
    const tensor = take.any(`${name}_blocks`, []);
    return { tensor, isFp4: true, scales: take.any(`${name}_scales`, tensor.shape.slice(0, 3)) };
  }
  const tensor = take.float(take.any(name, shape));
  return { tensor, isFp4: false, scales: take.optional(`${name}_scale_inv`, `${name}_scale`) };
}

/**
 * The matrix of one expert, as stored.
 * @param shape [R, C] of the stored matrix
 * @param count number of experts
 * @param isFlat true: the stack has shape [experts * R, C]
 * @throws COPPICE_FORMAT_SHAPE, COPPICE_FORMAT_DTYPE, COPPICE_FORMAT_QUANTIZED
 */
export function matrixOf(
  take: TensorTaker,
  { tensor, isFp4, scales }: Stack,
  [R, C]: readonly [number, number],
  expert: number,
  count: number,
  isFlat: boolean,
): TensorRef {
  if (isFp4) {
    checkShape(tensor, [count, R, C / fp4Block, fp4BlockBytes]);
    checkShape(scales as TensorRef, [count, R, C / fp4Block]);
    checkBytes(tensor);
    checkBytes(scales as TensorRef);
    const blockScales = entry(scales as TensorRef, expert, count, [R, C / fp4Block]);
    return {
      ...entry(tensor, expert, count, [R, C]),
      scales: { format: "mxfp4", stored: [R, C], rows: 1, columns: fp4Block, scales: blockScales },
    };
  }
  checkShape(tensor, isFlat ? [count * R, C] : [count, R, C]);
  const matrix = entry(tensor, expert, count, [R, C]);
  if (scales && scales.shape[0] !== count) checkShape(scales, [count, ...scales.shape.slice(1)]);
  const own = scales && entry(scales, expert, count, scales.shape.slice(1));
  return withScales(matrix, own, take.quantization);
}

/** The entry of an expert in the first axis, or its rows, as a tensor of its own. */
export function entry(stack: TensorRef, index: number, count: number, shape: readonly number[]): TensorRef {
  const bytes = (stack.end - stack.begin) / count;
  const begin = stack.begin + index * bytes;
  return { ...stack, name: `${stack.name}[${index}]`, shape, begin, end: begin + bytes };
}

/**
 * Part of a stored matrix [R, C] whose value [i, j] is the element `offset + i * strides[0] + j * strides[1]`. Whole
 * rows become a tensor of their own bytes, unless they share a scale with others.
 */
export function partOf(
  matrix: TensorRef,
  label: string,
  shape: readonly [number, number],
  offset: number,
  strides: readonly [number, number],
): TensorRef {
  const [R, C] = matrix.shape as [number, number];
  const name = matrix.name.replace(/\]$/, `, ${label}]`);
  const first = offset / C;
  const isRows = shape[1] === C && strides[0] === C && strides[1] === 1 && Number.isInteger(first);
  if (isRows && shape[0] === R) return { ...matrix, name };
  const rows = isRows ? matrixRows(matrix, first, shape[0]) : undefined;
  return { ...(rows ?? { ...matrix, shape, view: { offset, strides } }), name };
}

/** Values `offset`, `offset + stride`, ... of a stored vector. */
export function vectorOf(
  vector: TensorRef,
  label: string,
  length: number,
  offset: number,
  stride: number,
): TensorRef {
  const name = vector.name.replace(/\]$/, `, ${label}]`);
  if (stride !== 1) return { ...vector, name, shape: [length], view: { offset, strides: [stride] } };
  const bytes = dtypeBytes[vector.dtype];
  const begin = vector.begin + offset * bytes;
  return { ...vector, name, shape: [length], begin, end: begin + length * bytes };
}

function checkBytes({ name, dtype, shape }: TensorRef): void {
  if (dtype === "U8") return;
  throw new CoppiceError(
    "COPPICE_FORMAT_DTYPE",
    `tensor ${name} of ${elementCount(shape)} values has dtype ${dtype}; MXFP4 blocks and scales are U8`,
    { details: { tensor: name, dtype } },
  );
}
