import { type Backend, CoppiceError, type MoeModel, type RunEmitter, type WeightReader } from "@coppice/core";
import { SensitivityWork } from "./layer-sensitivity.js";
import type { ExpertLoss, MatrixLoss, Sensitivity, WidthMatrix } from "./sensitivity.js";

export interface SensitivityRequest {
  readonly model: MoeModel;
  readonly weights: WeightReader;
  readonly backend: Backend;
  readonly matrices: readonly WidthMatrix[];
  /** Widths to measure, such as 2, 4 and 8. */
  readonly bits: readonly number[];
  /** The values that a matrix has when it is read back after it was stored with so many bits. */
  quantized(matrix: WidthMatrix, bits: number): Promise<Float32Array>;
  /**
   * Whether matrices of an expert are quantized together, or one role after the other: three times the runs, and what two
   * of them lose together stays unknown. @default "experts"
   */
  readonly quantize?: "experts" | "matrices";
  /** Text as token ids; all of it is run at once, and held in memory with its outputs of one layer. */
  readonly sequences: readonly Int32Array[];
  /** Where predictions are compared, per sequence; all logits of these positions are held in memory twice. */
  readonly positions: readonly Int32Array[];
  /** KL(p || q) of two rows of logits, such as `divergence` of @coppice/evaluate. */
  divergence(p: Float32Array, q: Float32Array): number;
  /** Gets `progress` in steps: widths of groups of matrices, and drops. */
  readonly emitter?: RunEmitter;
  readonly signal?: AbortSignal;
}

/**
 * Measures what every matrix loses at every width and what every expert is worth, one layer at a time: the layer runs with
 * some of its matrices quantized on the inputs that the whole model gives it, and the whole model goes on from there. All
 * experts of a layer are quantized together, because one run shows the output error of each; these errors share out what the
 * predictions lost. So there are layers x matrices outside of experts x widths runs of half of the model on average, and one
 * more per layer and width for the experts, however many there are. For drops there is one run of a single layer per expert, and at most eight runs with ever more
 * experts of a layer dropped.
 *
 * Holds the model in float32 in the backend, twice while a tied embedding is quantized, and one layer twice more.
 * @throws COPPICE_TASK_EMPTY, COPPICE_BACKEND_FAILED when outputs are not finite, COPPICE_ABORTED; those of `Backend.load`
 */
export async function measureSensitivity(request: SensitivityRequest): Promise<Sensitivity> {
  const { model, matrices, positions, quantize = "experts" } = request;
  const count = positions.reduce((sum, { length }) => sum + length, 0);
  if (count === 0)
    throw new CoppiceError("COPPICE_TASK_EMPTY", "there are no positions to compare predictions at");
  await using work = await SensitivityWork.start(request);
  const losses = new Map<string, MatrixLoss>();
  const experts: ExpertLoss[] = [];
  for (const layer of model.layers) {
    const found = await work.measure(layer);
    for (const loss of found.matrices) losses.set(loss.name, loss);
    experts.push(...found.experts);
  }
  return {
    model: model.fingerprint,
    quantized: quantize,
    positions: count,
    matrices: matrices.map(({ name }) => losses.get(name) as MatrixLoss),
    experts,
  };
}
