import {
  CoppiceError,
  type Criterion,
  elementCount,
  type MlpSpec,
  moeLayers,
  type TensorRef,
  throwIfAborted,
} from "@coppice/core";

/** Sums over all weights of one expert, in float64. */
export interface WeightSums {
  count: number;
  /** Sum of |w|. */
  absolute: number;
  /** Sum of w². */
  squares: number;
}

/**
 * A criterion that scores each expert from sums over its weights. It reads one tensor at a time into one buffer of the
 * largest tensor's size, so memory does not grow with the checkpoint.
 * @param tensors of an expert that count
 */
export function weightCriterion(
  name: string,
  tensors: (expert: MlpSpec) => readonly TensorRef[],
  score: (sums: WeightSums) => number,
): Criterion {
  return {
    needs: { statistics: false, weights: true },
    async score({ model, weights, signal }) {
      if (!weights)
        throw new CoppiceError("COPPICE_USAGE", `${name} reads weights, no weight reader was given`);
      const layers = moeLayers(model);
      const sizes = layers.flatMap(({ feedForward }) =>
        feedForward.experts.flatMap((expert) => tensors(expert).map(({ shape }) => elementCount(shape))),
      );
      const buffer = new Float32Array(sizes.reduce((largest, size) => Math.max(largest, size), 0));
      const scores: Float64Array[] = [];
      for (const { feedForward, index } of layers) {
        const row = new Float64Array(feedForward.experts.length);
        for (const [expert, spec] of feedForward.experts.entries()) {
          throwIfAborted(signal, `reading expert ${expert} of layer ${index}`);
          const sums = { count: 0, absolute: 0, squares: 0 };
          for (const ref of tensors(spec)) {
            const into = buffer.subarray(0, elementCount(ref.shape));
            addWeights(sums, await weights.read(ref, { into, ...(signal && { signal }) }));
          }
          row[expert] = score(sums);
        }
        scores.push(row);
      }
      return scores;
    },
  };
}

function addWeights(sums: WeightSums, values: Float32Array): void {
  let absolute = 0;
  let squares = 0;
  for (let i = 0; i < values.length; i++) {
    const value = values[i] as number;
    absolute += Math.abs(value);
    squares += value * value;
  }
  sums.count += values.length;
  sums.absolute += absolute;
  sums.squares += squares;
}
