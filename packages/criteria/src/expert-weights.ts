import {
  CoppiceError,
  type Criterion,
  elementCount,
  type MlpSpec,
  moeLayers,
  type ScoreRequest,
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
 * A criterion that scores each expert from sums over its weights.
 * @param tensors of an expert that count
 */
export function weightCriterion(
  name: string,
  tensors: (expert: MlpSpec) => readonly TensorRef[],
  score: (sums: WeightSums) => number,
): Criterion {
  return {
    needs: { statistics: false, weights: true },
    async score(request) {
      const sums = moeLayers(request.model).map(({ feedForward }) =>
        feedForward.experts.map((): WeightSums => ({ count: 0, absolute: 0, squares: 0 })),
      );
      await readExperts(request, name, tensors, (values, row, expert) => {
        addWeights(sums[row]?.[expert] as WeightSums, values);
      });
      return sums.map((experts) => Float64Array.from(experts, score));
    },
  };
}

/**
 * Reads tensors of all experts, one at a time into one buffer of the largest one's size, so that memory does not grow with
 * the checkpoint.
 * @param name of the criterion, for messages
 * @param visit gets the values of one tensor, which MoE layer it is of, counted from 0, and which expert
 */
export async function readExperts(
  { model, weights, signal }: Pick<ScoreRequest, "model" | "weights" | "signal">,
  name: string,
  tensors: (expert: MlpSpec) => readonly TensorRef[],
  visit: (values: Float32Array, row: number, expert: number) => void,
): Promise<void> {
  if (!weights) throw new CoppiceError("COPPICE_USAGE", `${name} reads weights, no weight reader was given`);
  const layers = moeLayers(model);
  const sizes = layers.flatMap(({ feedForward }) =>
    feedForward.experts.flatMap((expert) => tensors(expert).map(({ shape }) => elementCount(shape))),
  );
  const buffer = new Float32Array(sizes.reduce((largest, size) => Math.max(largest, size), 0));
  for (const [row, { feedForward, index }] of layers.entries()) {
    for (const [expert, spec] of feedForward.experts.entries()) {
      throwIfAborted(signal, `reading expert ${expert} of layer ${index}`);
      for (const ref of tensors(spec)) {
        const into = buffer.subarray(0, elementCount(ref.shape));
        visit(await weights.read(ref, { into, ...(signal && { signal }) }), row, expert);
      }
    }
  }
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
