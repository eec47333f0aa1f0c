import type { GroupedQueryAttentionSpec, LatentAttentionSpec, LinearSpec, NormSpec } from "./model.js";
import type { TensorRef } from "./tensor.js";

/** Weights of grouped-query attention in the forms that a backend holds them in. */
export interface GroupedQueryWeights<Linear, Norm, Vector> {
  readonly query: Linear;
  readonly key: Linear;
  readonly value: Linear;
  readonly output: Linear;
  readonly queryNorm: Norm | undefined;
  readonly keyNorm: Norm | undefined;
  /** [heads] */
  readonly sinks: Vector | undefined;
}

/** Weights of latent attention in the forms that a backend holds them in. */
export interface LatentWeights<Linear, Norm> {
  readonly queryDown: Linear | undefined;
  readonly queryNorm: Norm | undefined;
  readonly query: Linear;
  readonly kvDown: Linear;
  readonly kvNorm: Norm;
  readonly kvUp: Linear;
  readonly output: Linear;
}

/** How a backend reads the parts of a layer. */
export interface PartReader<Linear, Norm, Vector> {
  linear(spec: LinearSpec): Promise<Linear>;
  norm(spec: NormSpec): Promise<Norm>;
  vector(ref: TensorRef | undefined): Promise<Vector | undefined>;
}

/** Reads the weights of attention, each once, one after another. @throws whatever `read` throws */
export async function readAttention<Linear, Norm, Vector>(
  spec: GroupedQueryAttentionSpec | LatentAttentionSpec,
  read: PartReader<Linear, Norm, Vector>,
): Promise<GroupedQueryWeights<Linear, Norm, Vector> | LatentWeights<Linear, Norm>> {
  const query = await read.linear(spec.query);
  const queryNorm = spec.queryNorm && (await read.norm(spec.queryNorm));
  const output = await read.linear(spec.output);
  if (spec.kind === "gqa") {
    return {
      query,
      key: await read.linear(spec.key),
      value: await read.linear(spec.value),
      output,
      queryNorm,
      keyNorm: spec.keyNorm && (await read.norm(spec.keyNorm)),
      sinks: await read.vector(spec.sinks),
    };
  }
  return {
    queryDown: spec.queryDown && (await read.linear(spec.queryDown)),
    queryNorm,
    query,
    kvDown: await read.linear(spec.kvDown),
    kvNorm: await read.norm(spec.kvNorm),
    kvUp: await read.linear(spec.kvUp),
    output,
  };
}
