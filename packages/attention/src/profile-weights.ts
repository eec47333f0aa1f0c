import type { GroupedQueryAttentionSpec, LimitableLayer, TensorRef, WeightReader } from "@coppice/core";

/** The weights of one layer's attention, but for the bias of its output. */
export interface ProfileWeights {
  readonly norm: NormWeights;
  /** [heads * headDim, hidden], and as many biases. */
  readonly query: ProjectionWeights;
  /** [kvHeads * headDim, hidden] */
  readonly key: ProjectionWeights;
  readonly value: ProjectionWeights;
  readonly queryNorm: NormWeights;
  readonly keyNorm: NormWeights;
  /** [hidden, heads * headDim] */
  readonly output: Float32Array;
  /** [heads] */
  readonly sinkLogits: Float32Array | undefined;
}

export interface ProjectionWeights {
  readonly weight: Float32Array;
  readonly bias: Float32Array | undefined;
}

export interface NormWeights {
  readonly weight: Float32Array | undefined;
  readonly bias: Float32Array | undefined;
}

/** Reads each once. */
export async function readProfileWeights(
  { attention, attentionNorm }: LimitableLayer,
  weights: WeightReader,
): Promise<ProfileWeights> {
  const read = async (ref: TensorRef | undefined) => ref && (await weights.read(ref));
  const norm = async (spec: GroupedQueryAttentionSpec["queryNorm"] | LimitableLayer["attentionNorm"]) => ({
    weight: await read(spec?.weight),
    bias: await read(spec?.bias),
  });
  const projection = async ({ weight, bias }: GroupedQueryAttentionSpec["query"]) => ({
    weight: await weights.read(weight),
    bias: await read(bias),
  });
  return {
    norm: await norm(attentionNorm),
    query: await projection(attention.query),
    key: await projection(attention.key),
    value: await projection(attention.value),
    queryNorm: await norm(attention.queryNorm),
    keyNorm: await norm(attention.keyNorm),
    output: await weights.read(attention.output.weight),
    sinkLogits: await read(attention.sinks),
  };
}
