import {
  type GatedMlpSpec,
  type LinearSpec,
  type MoeModel,
  type NormSpec,
  type TensorRef,
  throwIfAborted,
  type WeightReader,
} from "@coppice/core";

/** Weight [outputs, inputs], row-major, and bias [outputs]. */
export interface Linear {
  readonly weight: Float32Array;
  readonly bias: Float32Array | undefined;
  readonly inputs: number;
  readonly outputs: number;
}

export interface Norm {
  readonly weight: Float32Array;
  readonly epsilon: number;
}

/** gate and up are [width, hidden], down is [hidden, width]. */
export interface GatedMlp {
  readonly gate: Float32Array;
  readonly up: Float32Array;
  readonly down: Float32Array;
  readonly width: number;
}

export interface LayerWeights {
  readonly attentionNorm: Norm;
  readonly query: Linear;
  readonly key: Linear;
  readonly value: Linear;
  readonly output: Linear;
  readonly queryNorm: Norm | undefined;
  readonly keyNorm: Norm | undefined;
  readonly feedForwardNorm: Norm;
  /** [experts, hidden]; undefined in a dense layer. */
  readonly router: Float32Array | undefined;
  /** The experts of an MoE layer, or the one MLP of a dense layer. */
  readonly mlps: readonly GatedMlp[];
}

export interface ModelWeights {
  readonly embedding: Float32Array;
  readonly layers: readonly LayerWeights[];
  readonly finalNorm: Norm;
  readonly head: Float32Array;
}

/** Reads every weight once, in model order. */
export async function readWeights(
  model: MoeModel,
  reader: WeightReader,
  signal: AbortSignal | undefined,
): Promise<ModelWeights> {
  const tensor = (ref: TensorRef) => {
    throwIfAborted(signal, `reading ${ref.name}`);
    return reader.read(ref, signal ? { signal } : {});
  };
  const norm = async (spec: NormSpec) => ({ weight: await tensor(spec.weight), epsilon: spec.epsilon });
  const optionalNorm = async (spec: NormSpec | undefined) => (spec ? norm(spec) : undefined);
  const linear = async ({ weight, bias }: LinearSpec) => ({
    weight: await tensor(weight),
    bias: bias ? await tensor(bias) : undefined,
    outputs: weight.shape[0] as number,
    inputs: weight.shape[1] as number,
  });
  const mlp = async (spec: GatedMlpSpec) => ({
    gate: await tensor(spec.gate),
    up: await tensor(spec.up),
    down: await tensor(spec.down),
    width: spec.width,
  });

  const embedding = await tensor(model.embedding);
  const layers: LayerWeights[] = [];
  for (const { attention, attentionNorm, feedForwardNorm, feedForward } of model.layers) {
    const moe = feedForward.kind === "moe" ? feedForward : undefined;
    const specs = feedForward.kind === "moe" ? feedForward.experts : [feedForward.mlp];
    const mlps: GatedMlp[] = [];
    for (const spec of specs) mlps.push(await mlp(spec));
    layers.push({
      attentionNorm: await norm(attentionNorm),
      query: await linear(attention.query),
      key: await linear(attention.key),
      value: await linear(attention.value),
      output: await linear(attention.output),
      queryNorm: await optionalNorm(attention.queryNorm),
      keyNorm: await optionalNorm(attention.keyNorm),
      feedForwardNorm: await norm(feedForwardNorm),
      router: moe && (await tensor(moe.router.weight)),
      mlps,
    });
  }
  const finalNorm = await norm(model.finalNorm);
  return { embedding, layers, finalNorm, head: model.tied ? embedding : await tensor(model.head) };
}
