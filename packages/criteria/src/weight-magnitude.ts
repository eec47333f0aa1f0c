import {
  CoppiceError,
  definePlugin,
  elementCount,
  type MoeModel,
  mlpTensors,
  moeLayers,
  throwIfAborted,
  type WeightReader,
} from "@coppice/core";
import * as v from "valibot";

/** The weight-magnitude criterion has no options. */
export type WeightMagnitudeOptions = Record<never, never>;

declare module "@coppice/core" {
  interface CriterionPlugins {
    "weight-magnitude": WeightMagnitudeOptions;
  }
}

/**
 * `s_j = ‖θ_j‖_F`, the Frobenius norm of all weights of expert j (gate, up and down together), summed in float64:
 * magnitude pruning (Han et al., arXiv 1506.02626) with the expert as the unit. Needs no data.
 *
 * Reads one tensor at a time into one buffer of the largest tensor's size, so memory does not grow with the
 * checkpoint.
 */
export const weightMagnitude = definePlugin({
  kind: "criterion",
  name: "weight-magnitude",
  contract: 1,
  summary: "Scores experts by the Frobenius norm of their weights; needs no data.",
  reference: "https://arxiv.org/abs/1506.02626",
  options: v.strictObject({}),
  create: () => ({
    needs: { statistics: false, weights: true },
    async score({ model, weights, signal }) {
      if (!weights) {
        throw new CoppiceError("COPPICE_USAGE", "weight-magnitude reads weights, no weight reader was given");
      }
      return scoreWeights(model, weights, signal);
    },
  }),
});

async function scoreWeights(
  model: MoeModel,
  weights: WeightReader,
  signal: AbortSignal | undefined,
): Promise<Float64Array[]> {
  const layers = moeLayers(model);
  const sizes = layers.flatMap(({ feedForward }) =>
    feedForward.experts.flatMap((expert) => mlpTensors(expert).map(({ shape }) => elementCount(shape))),
  );
  const buffer = new Float32Array(sizes.reduce((largest, size) => Math.max(largest, size), 0));
  const scores: Float64Array[] = [];
  for (const { feedForward, index } of layers) {
    const row = new Float64Array(feedForward.experts.length);
    for (const [expert, spec] of feedForward.experts.entries()) {
      throwIfAborted(signal, `reading expert ${expert} of layer ${index}`);
      let squares = 0;
      for (const ref of mlpTensors(spec)) {
        const into = buffer.subarray(0, elementCount(ref.shape));
        squares += sumOfSquares(await weights.read(ref, { into, ...(signal && { signal }) }));
      }
      row[expert] = Math.sqrt(squares);
    }
    scores.push(row);
  }
  return scores;
}

function sumOfSquares(values: Float32Array): number {
  let sum = 0;
  for (let i = 0; i < values.length; i++) sum += (values[i] as number) ** 2;
  return sum;
}
