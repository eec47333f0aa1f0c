import {
  CoppiceError,
  createPlan,
  type MoeLayer,
  moeLayers,
  type RunEmitter,
  type Runner,
  startProgress,
  throwIfAborted,
} from "@coppice/core";
import type { TopKCosts } from "./top-k-choices.js";

export interface MeasureTopKOptions {
  /** A runner of the model, without anything running on it. */
  readonly runner: Runner;
  /** Token ids; each sequence runs by itself and is held in memory at the input of every layer. */
  readonly sequences: readonly Int32Array[];
  /** Gets `progress` in sequences. */
  readonly emitter?: RunEmitter;
  readonly signal?: AbortSignal;
}

/**
 * What fewer experts per token change in every MoE layer, on its real inputs X: `D_l(k)`, the mean over the sequences
 * of `‖MoE_l^(k)(X) - MoE_l^(own)(X)‖_F`, for k from 1 to the model's own top-k, whose cost is 0. The definition is that
 * of LExI (arXiv 2509.02753), which takes random X instead. Takes one pass and top-k more runs of each MoE layer.
 * @throws COPPICE_TASK_EMPTY, COPPICE_BACKEND_FAILED when outputs are not finite, COPPICE_ABORTED; those of `Runner.run`
 */
export async function measureTopK(options: MeasureTopKOptions): Promise<TopKCosts[]> {
  const { runner, sequences, emitter, signal } = options;
  if (sequences.length === 0) throw new CoppiceError("COPPICE_TASK_EMPTY", "the data has no sequences");
  const layers = moeLayers(runner.model);
  const sums = layers.map(({ feedForward }) => new Float64Array(feedForward.router.topK));
  const last = Math.max(0, ...layers.map(({ index }) => index));
  const tell = startProgress(emitter, "measuring top-k", "sequences");
  for (const [done, sequence] of sequences.entries()) {
    throwIfAborted(signal, `measuring top-k after ${done} of ${sequences.length} sequences`);
    const { boundaries } = await runner.run({
      sequences: [sequence],
      to: last + 1,
      boundaries: layers.map(({ index }) => index).filter((index) => index > 0),
      ...(signal && { signal }),
    });
    for (const [i, layer] of layers.entries()) {
      const { topK, order } = layer.feedForward.router;
      const output = (k: number) =>
        layerOutput(runner, layer, sequence, boundaries.get(layer.index), k, signal);
      const own = await output(topK);
      for (let k = order === "sparsemixer" ? topK : 1; k < topK; k++) {
        const sum = sums[i] as Float64Array;
        sum[k - 1] = (sum[k - 1] as number) + distance(await output(k), own, layer.index);
      }
    }
    tell(done + 1, sequences.length);
  }
  return layers.map(({ index }, i) => ({
    layer: index,
    costs: Array.from(sums[i] as Float64Array, (sum) => sum / sequences.length),
  }));
}

/** What the routed experts of one layer add with k experts per token, [tokens, hidden]. */
async function layerOutput(
  runner: Runner,
  { index, feedForward }: MoeLayer,
  sequence: Int32Array,
  hidden: Float32Array | undefined,
  k: number,
  signal: AbortSignal | undefined,
): Promise<Float32Array> {
  const { hiddenSize } = runner.model;
  const out = new Float32Array(sequence.length * hiddenSize);
  let at = 0;
  const experts = feedForward.experts.map((_, expert) => expert);
  await runner.run({
    sequences: [sequence],
    from: index,
    to: index + 1,
    plan: createPlan(runner.model, [{ layer: index, experts, topK: k }]),
    tap: {
      fields: ["output"],
      onLayer({ output = new Float32Array(0) }) {
        out.set(output, at);
        at += output.length;
      },
    },
    ...(hidden && { hidden }),
    ...(signal && { signal }),
  });
  return out;
}

/** Frobenius norm of the difference. */
function distance(a: Float32Array, b: Float32Array, layer: number): number {
  let squares = 0;
  for (let i = 0; i < a.length; i++) squares += ((a[i] as number) - (b[i] as number)) ** 2;
  if (Number.isFinite(squares)) return Math.sqrt(squares);
  throw new CoppiceError("COPPICE_BACKEND_FAILED", `the output of layer ${layer} is not finite`, {
    hint: "the checkpoint's weights are damaged, or the backend's precision is too low for this model",
    details: { layer },
  });
}
