import type { ActivationSpec } from "@coppice/core";
import type { Gpu } from "./gpu.js";
import type { GpuMatrix } from "./gpu-matrix.js";
import type { ProductKernel } from "./product-kernel.js";
import { type SerialOptions, serialColumns, serialKey, serialSource } from "./serial-code.js";

/** What `serialKernel` multiplies. */
export interface SerialProduct {
  readonly matrix: GpuMatrix;
  readonly bias: boolean;
  readonly activation: ActivationSpec | undefined;
  readonly scaled: boolean;
  readonly of: SerialOptions["of"];
  /** Rows of x that go to one matrix: 1, or any number. */
  readonly rows: number;
}

/** The kernel of a product on a `Gpu.serial` device. */
export function serialKernel(
  gpu: Gpu,
  { matrix: { format, columns }, bias, activation, scaled, of, rows }: SerialProduct,
): ProductKernel {
  const options: SerialOptions = {
    format,
    bias,
    activation: activation?.kind ?? "none",
    of,
    rows: rows > 1 ? 4 : 1,
    scaled,
    width: columns % 8 === 0 ? 8 : columns % 4 === 0 ? 4 : 1,
  };
  const kernel = gpu.kernel(serialKey(options), () => serialSource(options));
  return { kernel, across: serialColumns(options.activation), down: options.rows };
}
