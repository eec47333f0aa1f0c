import type { ActivationSpec } from "@coppice/core";
import { type ActivationKind, activationParams, isGated } from "./activation-code.js";
import type { Gpu } from "./gpu.js";
import type { GpuBuffer } from "./gpu-buffer.js";
import { type GpuMatrix, partBuffers } from "./gpu-matrix.js";
import { productKernel } from "./product-kernel.js";
import { rowsKey, rowsOutputs, rowsSharing, rowsSource } from "./rows-code.js";
import { tileColumns } from "./tile-frame.js";

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
  const { x, rows, weight, bias, activation, y, factor = 1, half = false } = call;
  const { format, blocks, columns, parts } = weight;
  const kind: ActivationKind = activation?.kind ?? "none";
  const shared = {
    format,
    bias: bias !== undefined,
    activation: kind,
    scaled: false,
    vectors: columns % 4 === 0,
  };
  const few = rows <= fewRows;
  const tile = rows >= 512 && blocks >= 512 ? 128 : rows > 32 ? 64 : 16;
  const perGroup = rows > 4 ? 8 : rows > 2 ? 4 : rows === 2 ? 2 : 1;
  const rowsOptions = { ...shared, rows: perGroup, gathered: false, ...rowsSharing(weight, rows) } as const;
  const kernel = few
    ? gpu.kernel(rowsKey(rowsOptions), () => rowsSource(rowsOptions))
    : productKernel(gpu, { ...shared, grouped: false, tile }, half);
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
    const [across, down] = few
      ? [Math.ceil(part.count / rowsOutputs(rowsOptions)), 1]
      : [Math.ceil(part.count / tileColumns(tile, isGated(kind))), Math.ceil(rows / tile)];
    gpu.commands.dispatch(
      kernel,
      [x, ...partBuffers(part), ...(bias ? [bias] : []), y],
      params,
      across,
      down,
    );
  }
}
