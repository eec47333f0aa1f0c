import type { WorkStore } from "@coppice/calibrate";
import type { WriteTensor } from "@coppice/checkpoint";
import {
  type Backend,
  CoppiceError,
  type DecoderLayer,
  type InputSums,
  type MoeModel,
  type Quantizer,
} from "@coppice/core";
import type { EditedWeights } from "./edited-weights.js";
import { type FoldTarget, foldAttentionNorm, foldExpertNorm, foldUnits, foldValues } from "./fold-scales.js";
import type { FormattedMatrix } from "./format-rules.js";
import { type Batch, batchesOf, embed, HiddenStates } from "./hidden-states.js";
import { dividedSums, SumBuilder, sumBytes } from "./input-sums.js";
import type { MatrixWork } from "./matrix-work.js";
import { readNorm } from "./normalize.js";
import { advance, attendedSums, attentionSums, type LayerRun, loadLayer, moeSums } from "./observe-layer.js";

/** What calibrated quantizers learn inputs from. */
export interface CalibrationData {
  /** Any backend whose tap shows `input`, `routing` and `everyUnit`. */
  readonly backend: Backend;
  /** Token ids; some ten thousand tokens that are like those of the task. */
  readonly sequences: readonly Int32Array[];
  /** Where hidden states are kept between layers; default in memory, 4 bytes x hidden size per token. */
  readonly store?: WorkStore;
  /** Most bytes of sums over the inputs of experts at a time; default 1 GiB. With less, data runs more often. */
  readonly sumBytes?: number;
}

interface PassRequest {
  readonly model: MoeModel;
  readonly weights: EditedWeights;
  readonly matrices: readonly FormattedMatrix[];
  readonly work: MatrixWork;
  readonly write: WriteTensor;
  readonly quantizer: Quantizer;
  readonly calibration: CalibrationData;
  readonly signal?: AbortSignal;
}

const defaultSumBytes = 2 ** 30;

/**
 * Quantizes layer by layer: the data runs through the layer, whose matrices are quantized by what they read; then it runs
 * through the quantized layer, so that later layers are fitted to what earlier ones really put out.
 *
 * Inputs are known of attention, of the head, of routed experts (of the tokens that choose them) and of gate and up of
 * shared experts. Memory: one layer in the backend, its codes, hidden states (see `CalibrationData.store`) and sums.
 */
export async function calibratedPass(request: PassRequest): Promise<void> {
  const { model, weights, matrices, calibration, signal } = request;
  const batches = batchesOf(calibration.sequences);
  if (batches.length === 0)
    throw new CoppiceError("COPPICE_TASK_EMPTY", "the calibration data has no tokens");
  const states = new HiddenStates(calibration.store);
  try {
    await embed(model, weights, batches, states);
    for (const layer of model.layers) {
      const { backend } = calibration;
      const run: LayerRun = { model, layer, weights, backend, batches, states, ...(signal && { signal }) };
      await quantizeLayer(request, run);
      await advance(run);
      weights.forgetReplaced();
    }
    for (const matrix of matrices) {
      if (matrix.layer !== undefined) continue;
      const inputs = matrix.role === "head" ? await headSums(request, batches, states) : undefined;
      await request.work.quantize(matrix, weights, request.write, inputs);
    }
  } finally {
    await states.clear(batches);
  }
}

/** Sums over what the head reads. */
async function headSums(
  { model, weights }: PassRequest,
  batches: readonly Batch[],
  states: HiddenStates,
): Promise<InputSums> {
  const norm = await readNorm(model.finalNorm, weights);
  const sums = new SumBuilder(model.hiddenSize);
  for (const batch of batches) sums.add(norm(await states.read(batch), model.hiddenSize), batch.tokens);
  return sums.finish();
}

async function quantizeLayer(request: PassRequest, run: LayerRun): Promise<void> {
  const { quantizer, weights, matrices, signal } = request;
  const { layer } = run;
  const own = matrices.filter((matrix) => matrix.layer === layer.index);
  if (own.length === 0) return;
  const target: FoldTarget = {
    quantizer,
    weights,
    formatted: new Map(own.map((matrix) => [matrix.weight.name, matrix])),
    ...(signal && { signal }),
  };
  // Everything is observed with the weights that the layer has now; what is folded later divides these sums.
  const runner = await loadLayer(run);
  try {
    const attention = await attentionSums(run);
    const attended = await attendedSums(run);
    const ranges = expertRanges(run, request.calibration.sumBytes ?? defaultSumBytes);
    const needsAll = quantizer.scaleInputs !== undefined || own.some(({ shared }) => shared);
    let sums = await moeSums(run, runner, ranges[0] as ExpertRange, needsAll);
    const all = sums.inputs;
    const factors = {
      attention: await foldAttentionNorm(target, layer, attention),
      attended: attended && (await foldValues(target, layer, attended)),
      experts: all && (await foldExpertNorm(target, layer, all)),
    };
    const attentionInputs = divided(attention, factors.attention);
    const outputInputs = divided(attended, factors.attended);
    for (const matrix of own) {
      if (matrix.expert !== undefined) continue;
      const inputs = readsAttentionNorm(matrix, layer)
        ? attentionInputs
        : matrix.role === "output"
          ? outputInputs
          : matrix.shared && matrix.role !== "down"
            ? divided(all, factors.experts)
            : undefined;
      await quantize(request, matrix, inputs);
    }
    for (const [i, range] of ranges.entries()) {
      if (i > 0) sums = await moeSums(run, runner, range, false);
      for (const [expert, { inputs, units }] of sums.experts) {
        const unitFactors = units.tokens > 0 ? await foldUnits(target, layer, expert, units) : undefined;
        const read = { inputs: divided(inputs, factors.experts), units: divided(units, unitFactors) };
        for (const matrix of own) {
          if (matrix.expert !== expert) continue;
          await quantize(request, matrix, matrix.role === "down" ? read.units : read.inputs);
        }
      }
    }
  } finally {
    await runner.dispose();
  }
}

async function quantize(
  { work, weights, write }: PassRequest,
  matrix: FormattedMatrix,
  inputs: InputSums | undefined,
): Promise<void> {
  weights.replace(matrix.weight, await work.quantize(matrix, weights, write, inputs));
}

function divided<S extends InputSums | undefined>(sums: S, factors: Float64Array | undefined): S | InputSums {
  return sums && factors ? dividedSums(sums, factors) : sums;
}

function readsAttentionNorm({ role }: FormattedMatrix, { attention }: DecoderLayer): boolean {
  if (role === "key" || role === "value" || role === "queryDown" || role === "kvDown") return true;
  return role === "query" && (attention.kind === "gqa" || (attention.kind === "mla" && !attention.queryDown));
}

interface ExpertRange {
  readonly from: number;
  readonly to: number;
}

/** Experts whose sums fit together; at least one at a time, and one range of none in a dense layer. */
function expertRanges({ layer, model }: LayerRun, most: number): ExpertRange[] {
  const { feedForward } = layer;
  if (feedForward.kind !== "moe") return [{ from: 0, to: 0 }];
  const { experts } = feedForward;
  const each = sumBytes(model.hiddenSize) + sumBytes(experts[0]?.width ?? 0);
  const count = Math.max(1, Math.floor(most / each));
  return Array.from({ length: Math.ceil(experts.length / count) }, (_, i) => ({
    from: i * count,
    to: Math.min(experts.length, (i + 1) * count),
  }));
}
