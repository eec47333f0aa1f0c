import type { WriteTensor } from "@coppice/checkpoint";
import {
  dequantizeMatrix,
  type InputSums,
  type QuantizedMatrix,
  type Quantizer,
  type RunEmitter,
  type ScaleDType,
  throwIfAborted,
  type WeightReader,
} from "@coppice/core";
import type { FormattedMatrix } from "./format-rules.js";
import { packedBytes, packedTensors } from "./pack-tensors.js";

/** What became of a matrix. */
export interface QuantizedMatrixReport
  extends Pick<FormattedMatrix, "module" | "role" | "layer" | "expert" | "format"> {
  /** ‖W - Ŵ‖ / ‖W‖ by the root of summed squares; 0 for a matrix of zeros. */
  readonly error: number;
  /** Why a simpler method was used for it. */
  readonly fallback?: string;
}

/** How matrices are quantized. */
export interface MatrixWorkOptions {
  readonly quantizer: Quantizer;
  readonly scales?: ScaleDType;
  readonly emitter?: RunEmitter;
  readonly signal?: AbortSignal;
}

/** Quantizes and writes matrices one by one. */
export class MatrixWork {
  readonly reports: QuantizedMatrixReport[] = [];
  readonly #matrices: readonly FormattedMatrix[];
  readonly #options: MatrixWorkOptions;

  constructor(matrices: readonly FormattedMatrix[], options: MatrixWorkOptions) {
    this.#matrices = matrices;
    this.#options = options;
  }

  /** @param inputs what the quantizer asked for, if it is known */
  async quantize(
    matrix: FormattedMatrix,
    weights: WeightReader,
    write: WriteTensor,
    inputs?: InputSums,
  ): Promise<QuantizedMatrix> {
    const { quantizer, emitter, signal } = this.#options;
    const { module, format, role, layer, expert } = matrix;
    const { name, shape } = matrix.weight;
    throwIfAborted(signal, `quantizing ${module}`);
    const [rows, columns] = shape as [number, number];
    const scales = scaleDtype(matrix, this.#options.scales);
    const values = await weights.read(matrix.weight, signal ? { signal } : {});
    const { matrix: result, fallback } = await quantizer.quantize({
      name,
      weights: values,
      rows,
      columns,
      format,
      scales,
      ...(inputs && { inputs }),
      ...(signal && { signal }),
    });
    const bytes = packedBytes(result, scales);
    const tensors = packedTensors(module, [rows, columns], format, scales);
    for (const [i, tensor] of tensors.entries()) await write(tensor.name, bytes[i] as Uint8Array);
    this.reports.push({
      module,
      role,
      format,
      error: relativeError(values, dequantizeMatrix(result)),
      ...(layer !== undefined && { layer }),
      ...(expert !== undefined && { expert }),
      ...(fallback !== undefined && { fallback }),
    });
    emitter?.notify("progress", {
      stage: "quantizing",
      done: this.reports.length,
      total: this.#matrices.length,
      unit: "matrices",
    });
    return result;
  }
}

/** In which dtype the scales of a matrix are stored. */
export function scaleDtype({ weight }: FormattedMatrix, asked: ScaleDType | undefined): ScaleDType {
  return asked ?? (weight.dtype === "BF16" ? "BF16" : "F16");
}

function relativeError(values: Float32Array, found: Float32Array): number {
  let error = 0;
  let total = 0;
  for (let i = 0; i < values.length; i++) {
    const value = values[i] as number;
    error += ((found[i] as number) - value) ** 2;
    total += value ** 2;
  }
  return total === 0 ? 0 : Math.sqrt(error / total);
}
