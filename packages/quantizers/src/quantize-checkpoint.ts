import {
  type CheckpointTarget,
  type LoadedCheckpoint,
  type RewriteOptions,
  type RewriteSummary,
  type RewrittenTensor,
  rewriteCheckpoint,
} from "@coppice/checkpoint";
import { CoppiceError, type Quantizer, type RunEmitter, type ScaleDType } from "@coppice/core";
import { type CalibrationData, calibratedPass } from "./calibrated-pass.js";
import { compressedConfig } from "./compressed-config.js";
import { EditedWeights } from "./edited-weights.js";
import { checkFinite, checkWritable, floatTensors, writeFloats } from "./float-tensors.js";
import { type FormatOf, type FormattedMatrix, formatMatrices } from "./format-rules.js";
import { MatrixWork, type QuantizedMatrixReport, scaleDtype } from "./matrix-work.js";
import { modelMatrices } from "./model-matrices.js";
import { packedTensors } from "./pack-tensors.js";
import { rotateModel } from "./rotate.js";

export interface QuantizeCheckpointOptions extends Pick<RewriteOptions, "maxShardBytes" | "signal"> {
  readonly quantizer: Quantizer;
  /** See `uniformFormat`. */
  readonly format: FormatOf;
  /** For quantizers that ask for inputs. */
  readonly calibration?: CalibrationData;
  /** Seed of a rotation of the residual stream and of the heads before anything is quantized; absent: none. See `rotateModel`. */
  readonly rotate?: number;
  /** In which scales are stored; default the dtype of the weights when that is BF16, else F16. */
  readonly scales?: ScaleDType;
  /** Gets `progress` after every matrix. */
  readonly emitter?: RunEmitter;
}

export interface QuantizeSummary extends RewriteSummary {
  readonly matrices: readonly QuantizedMatrixReport[];
}

/**
 * Writes a checkpoint with quantized matrices in the layout `pack-quantized` of compressed-tensors, which `loadModel`
 * reads like any other and whose codes ONNX Runtime executes as they are. Everything else is copied, but for what scaling
 * and rotation change.
 *
 * Memory: one matrix at a time; with calibration data see `calibratedPass`.
 * @throws COPPICE_USAGE, COPPICE_FAMILY_UNSUPPORTED before anything is written; COPPICE_FORMAT_NAN, also for weights that
 * stay as they are, and what `rewriteCheckpoint` and the backend throw
 */
export async function quantizeCheckpoint(
  loaded: LoadedCheckpoint,
  target: CheckpointTarget,
  options: QuantizeCheckpointOptions,
): Promise<QuantizeSummary> {
  const { model } = loaded;
  const { quantizer, calibration, rotate } = options;
  const matrices = formatMatrices(modelMatrices(model), options.format);
  if (quantizer.needs.inputs && !calibration) {
    throw new CoppiceError(
      "COPPICE_USAGE",
      "the quantizer works from inputs and no calibration data was given",
    );
  }
  const weights = new EditedWeights(loaded.weights);
  if (rotate !== undefined) await rotateModel(loaded, weights, rotate);
  const work = new MatrixWork(matrices, options);
  const changes = rotate !== undefined || quantizer.scaleInputs !== undefined;
  const floats = floatTensors(model, matrices);
  if (changes) checkWritable(floats);
  else await checkFinite(floats, loaded.weights, options.signal);
  const changed = changes ? floats : [];
  const summary = await rewriteCheckpoint(
    loaded,
    target,
    outputTensors(loaded, matrices, new Set(changed.map(({ name }) => name)), options.scales),
    async (write) => {
      if (calibration && quantizer.needs.inputs) {
        await calibratedPass({ model, weights, matrices, work, write, ...options, calibration });
      } else for (const matrix of matrices) await work.quantize(matrix, weights, write);
      for (const ref of changed) await writeFloats(ref, weights, write, options.signal);
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

/** Tensors of the output in the order of the files that they come from. */
function outputTensors(
  { tensors }: LoadedCheckpoint,
  matrices: readonly FormattedMatrix[],
  changed: ReadonlySet<string>,
  scales: ScaleDType | undefined,
): RewrittenTensor[] {
  const quantized = new Map(matrices.map((matrix) => [matrix.weight.name, matrix]));
  return [...tensors.values()].flatMap((source): RewrittenTensor[] => {
    const matrix = quantized.get(source.name);
    const { name, dtype, shape } = source;
    if (!matrix) return [{ name, dtype, shape, ...(!changed.has(name) && { source }) }];
    return packedTensors(matrix.module, shape as [number, number], matrix.format, scaleDtype(matrix, scales));
  });
}

/** JSON text of `quantization_config`. */
function configText(
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
