import type { Gpu } from "./gpu.js";
import type { GpuBuffer } from "./gpu-buffer.js";
import { type GpuMatrix, partBuffers } from "./gpu-matrix.js";
import { rowsKey, rowsOutputs, rowsSource } from "./rows-code.js";
import { tiledKey, tiledSource } from "./tiled-code.js";

export interface MatmulCall {
  /** [rows, columns of the matrix] */
  readonly x: GpuBuffer;
  readonly rows: number;
  /** One matrix in blocks of one row. */
  readonly weight: GpuMatrix;
  /** [blocks] */
  readonly bias?: GpuBuffer | undefined;
  /** [rows, blocks] */
  readonly y: GpuBuffer;
  /** On y. @default 1 */
  readonly factor?: number | undefined;
  /** Multiply tiles in f16, sums in f32; needs the feature `shader-f16`. @default false */
  readonly half?: boolean;
}

/** Rows of x from which on tiles in workgroup memory pay. */
export const fewRows = 8;

/** y = (x Wᵀ + bias) * factor, in float32. */
export function matmul(gpu: Gpu, call: MatmulCall): void {
  const { x, rows, weight, bias, y, factor = 1, half = false } = call;
  const { format, blocks, columns, parts } = weight;
  const shared = {
    format,
    bias: bias !== undefined,
    activation: "none",
    scaled: false,
    vectors: columns % 4 === 0,
  } as const;
  const few = rows <= fewRows;
  // Twice as many columns per thread pay once every multiprocessor has a tile of its own.
  const tile = rows >= 512 && blocks >= 512 ? 128 : 64;
  const perGroup = rows > 4 ? 8 : rows > 2 ? 4 : rows === 2 ? 2 : 1;
  const rowsOptions = { ...shared, rows: perGroup, gathered: false } as const;
  const tiledOptions = { ...shared, grouped: false, half, tile } as const;
  const kernel = few
    ? gpu.kernel(rowsKey(rowsOptions), () => rowsSource(rowsOptions))
    : gpu.kernel(tiledKey(tiledOptions), () => tiledSource(tiledOptions));
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
      limit: 0,
      alpha: 0,
    };
    const [across, down] = few
      ? [Math.ceil(part.count / rowsOutputs), 1]
      : [Math.ceil(part.count / tile), Math.ceil(rows / tile)];
    gpu.commands.dispatch(
      kernel,
      [x, ...partBuffers(part), ...(bias ? [bias] : []), y],
      params,
      across,
      down,
    );
  }
}
