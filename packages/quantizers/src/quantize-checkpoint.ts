import {
  type CheckpointTarget,
  type LoadedCheckpoint,
  type RewriteOptions,
  type RewriteSummary,
  type RewrittenTensor,
  rewriteCheckpoint,
  type WriteTensor,
} from "@coppice/checkpoint";
import {
  dequantizeMatrix,
  type InputSums,
  type Quantizer,
  type RunEmitter,
  type ScaleDType,
  throwIfAborted,
  type WeightReader,
} from "@coppice/core";
import { compressedConfig } from "./compressed-config.js";
import { type FormatOf, type FormattedMatrix, formatMatrices } from "./format-rules.js";
import { modelMatrices } from "./model-matrices.js";
import { packedBytes, packedTensors } from "./pack-tensors.js";

export interface QuantizeCheckpointOptions extends Pick<RewriteOptions, "maxShardBytes" | "signal"> {
  readonly quantizer: Quantizer;
  /** See `uniformFormat`. */
  readonly format: FormatOf;
  /** In which scales are stored; default the dtype of the weights when that has 16 bits, else F16. */
  readonly scales?: ScaleDType;
  /** Gets `progress` after every matrix. */
  readonly emitter?: RunEmitter;
}

/** What became of a matrix. */
export interface QuantizedMatrixReport
  extends Pick<FormattedMatrix, "module" | "role" | "layer" | "expert" | "format"> {
  /** ‖W - Ŵ‖ / ‖W‖ by the root of summed squares; 0 for a matrix of zeros. */
  readonly error: number;
  /** Why a simpler method was used for it. */
  readonly fallback?: string;
}

export interface QuantizeSummary extends RewriteSummary {
  readonly matrices: readonly QuantizedMatrixReport[];
}

/**
 * Writes a checkpoint with quantized matrices in the layout `pack-quantized` of compressed-tensors, which `loadModel`
 * reads like any other and whose codes ONNX Runtime executes as they are. Everything else is copied. One matrix is in
 * memory at a time.
 * @throws COPPICE_USAGE, COPPICE_FAMILY_UNSUPPORTED before anything is written; COPPICE_FORMAT_NAN and what
 * `rewriteCheckpoint` throws
 */
export async function quantizeCheckpoint(
  loaded: LoadedCheckpoint,
  target: CheckpointTarget,
  options: QuantizeCheckpointOptions,
): Promise<QuantizeSummary> {
  const { model, weights } = loaded;
  const matrices = formatMatrices(modelMatrices(model), options.format);
  const work = new MatrixWork(matrices, options);
  const summary = await rewriteCheckpoint(
    loaded,
    target,
    outputTensors(loaded, matrices, options.scales),
    async (write) => {
      for (const matrix of matrices) await work.quantize(matrix, weights, write);
    },
    {
      ...options,
      config: {
        replace: new Map(),
        insert: new Map([["quantization_config", configText(loaded, matrices)]]),
      },
    },
  );
  return { ...summary, matrices: work.reports };
}

/** Quantizes and writes matrices one by one. */
export class MatrixWork {
  readonly reports: QuantizedMatrixReport[] = [];
  readonly #matrices: readonly FormattedMatrix[];
  readonly #options: QuantizeCheckpointOptions;

  constructor(matrices: readonly FormattedMatrix[], options: QuantizeCheckpointOptions) {
    this.#matrices = matrices;
    this.#options = options;
  }

  /** @param inputs what the quantizer asked for, if it is known */
  async quantize(
    matrix: FormattedMatrix,
    weights: WeightReader,
    write: WriteTensor,
    inputs?: InputSums,
  ): Promise<void> {
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
  }
}

/** Tensors of the output in the order of the files that they come from. */
export function outputTensors(
  { tensors }: LoadedCheckpoint,
  matrices: readonly FormattedMatrix[],
  scales: ScaleDType | undefined,
): RewrittenTensor[] {
  const quantized = new Map(matrices.map((matrix) => [matrix.weight.name, matrix]));
  return [...tensors.values()].flatMap((source): RewrittenTensor[] => {
    const matrix = quantized.get(source.name);
    const { name, dtype, shape } = source;
    if (!matrix) return [{ name, dtype, shape, source }];
    return packedTensors(matrix.module, shape as [number, number], matrix.format, scaleDtype(matrix, scales));
  });
}

function scaleDtype({ weight }: FormattedMatrix, asked: ScaleDType | undefined): ScaleDType {
  return asked ?? (weight.dtype === "BF16" ? "BF16" : "F16");
}

/** JSON text of `quantization_config`. */
export function configText(
  { model, tensors, detected }: LoadedCheckpoint,
  matrices: readonly FormattedMatrix[],
): string {
  const quantized = new Set(matrices.map(({ weight }) => weight.name));
  const ignored = [...tensors.values()].flatMap(({ name, shape }) => {
    const isLinear = shape.length === 2 && name.endsWith(".weight") && name !== model.embedding.name;
    return isLinear && !quantized.has(name) ? [name.replace(/\.weight$/, "")] : [];
  });
  // A tied head has no tensor of its own and is a linear layer all the same.
  if (model.tied) ignored.push(detected.family.tensors.head);
  const modules = matrices.map(({ module, role, format }) => ({
    module,
    format,
    isEmbedding: role === "embedding",
  }));
  return JSON.stringify(compressedConfig(modules, [...new Set(ignored)]));
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
