import type { ActivationSpec } from "@coppice/core";
import { type ActivationKind, activationParams } from "./activation-code.js";
import type { Gpu } from "./gpu.js";
import type { GpuBuffer } from "./gpu-buffer.js";
import { type GpuMatrix, partBuffers } from "./gpu-matrix.js";
import { type ProductKernel, productKernel } from "./product-kernel.js";
import { rowsKey, rowsOutputs, rowsSharing, rowsSource } from "./rows-code.js";
import { serialKernel } from "./serial-kernel.js";

/** `y = activation(x Wᵀ + bias) * factor`. */
export interface MatmulCall {
  /** [rows, columns of the matrix] */
  readonly x: GpuBuffer;
  readonly rows: number;
  /** Blocks of one row, or of one row of up and one of gate for gated activations: one block per column of y. */
  readonly weight: GpuMatrix;
  /** One value per row of the weight. */
  readonly bias?: GpuBuffer | undefined;
  /** Absent: none. */
  readonly activation?: ActivationSpec | undefined;
  /** [rows, blocks] */
  readonly y: GpuBuffer;
  /** On y. @default 1 */
  readonly factor?: number | undefined;
  /** Round x and W to float16 where the device has units for that (`Gpu.matrixUnits`); sums are float32. @default false */
  readonly half?: boolean;
}

/** Rows of x from which on tiles in workgroup memory pay. */
export const fewRows = 8;

/** A projection, or the hidden units of an MLP, in float32. */
export function matmul(gpu: Gpu, call: MatmulCall): void {
  const { x, rows, weight, bias, activation, y, factor = 1 } = call;
  const { blocks, columns, parts } = weight;
  const { kernel, across, down } = gpu.serial
    ? serialKernel(gpu, {
        matrix: weight,
        bias: bias !== undefined,
        activation,
        scaled: false,
        of: "matrix",
        rows,
      })
    : parallelKernel(gpu, call);
  for (const part of parts) {
    const params = {
      m: rows,
      n: part.count,
      k: columns,
      divisor: 1,
      first: 0,
      count: 1,
      column: part.first,
      stride: blocks,
      factor,
      ...activationParams(activation),
    };
    const buffers = [x, ...partBuffers(part), ...(bias ? [bias] : []), y];
    gpu.commands.dispatch(kernel, buffers, params, Math.ceil(part.count / across), Math.ceil(rows / down));
  }
}

function parallelKernel(
  gpu: Gpu,
  { rows, weight, bias, activation, half = false }: MatmulCall,
): ProductKernel {
  const { format, blocks, columns } = weight;
  const kind: ActivationKind = activation?.kind ?? "none";
  const vectors = columns % 4 === 0;
  const shared = { format, bias: bias !== undefined, activation: kind, scaled: false, vectors };
  if (rows <= fewRows) {
    const perGroup = rows > 4 ? 8 : rows > 2 ? 4 : rows === 2 ? 2 : 1;
    const options = {
      ...shared,
      rows: perGroup,
      gathered: false,
      ...rowsSharing(gpu, weight, rows),
    } as const;
    const kernel = gpu.kernel(rowsKey(options), () => rowsSource(options));
    return { kernel, across: rowsOutputs(options), down: rows };
  }
  const tile = rows >= 512 && blocks >= 512 ? 128 : rows > 32 ? 64 : 16;
  return productKernel(gpu, { ...shared, grouped: false, tile }, half);
}
