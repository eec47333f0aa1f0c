import {
  type ActivationSpec,
  type AttentionSpec,
  type GroupedQueryWeights as GroupedQueryParts,
  type LatentWeights as LatentParts,
  type LayerRange,
  type LinearSpec,
  type LoadRequest,
  type MlpSpec,
  type MoeModel,
  type NormSpec,
  readAttention,
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
  readonly kind: NormSpec["kind"];
  readonly weight: Float32Array | undefined;
  readonly bias: Float32Array | undefined;
  readonly epsilon: number;
}

/** gate and up are [width, hidden], down is [hidden, width]; ungated ones have no gate. */
export interface Mlp {
  readonly gate: Float32Array | undefined;
  readonly up: Float32Array;
  readonly down: Float32Array;
  readonly gateBias: Float32Array | undefined;
  readonly upBias: Float32Array | undefined;
  readonly downBias: Float32Array | undefined;
  readonly width: number;
  readonly activation: ActivationSpec;
}

export type GroupedQueryWeights = GroupedQueryParts<Linear, Norm, Float32Array>;
export type LatentWeights = LatentParts<Linear, Norm>;

export interface Router {
  /** [experts, hidden] */
  readonly weight: Float32Array;
  /** [experts] */
  readonly bias: Float32Array | undefined;
  /** [experts] */
  readonly correction: Float32Array | undefined;
}

export interface LayerWeights {
  readonly attentionNorm: Norm;
  /** Of the kind that the layer's description has. */
  readonly attention: GroupedQueryWeights | LatentWeights;
  readonly feedForwardNorm: Norm;
  /** Undefined in a dense layer. */
  readonly router: Router | undefined;
  /** The experts of an MoE layer, or the one MLP of a dense layer. */
  readonly mlps: readonly Mlp[];
  readonly shared: Mlp | undefined;
  /** [1, hidden] */
  readonly sharedGate: Float32Array | undefined;
}

export interface Head {
  readonly norm: Norm;
  /** [vocab, hidden] */
  readonly weight: Float32Array;
  readonly bias: Float32Array | undefined;
}

/** What a runner of some layers needs. */
export interface ModelWeights {
  /** Undefined when the first layer is not among them. */
  readonly embedding: Float32Array | undefined;
  /** By index of the layer. */
  readonly layers: ReadonlyMap<number, LayerWeights>;
  /** Undefined when the last layer is not among them. */
  readonly head: Head | undefined;
}

/** Reads the weights of a range of layers, each once, in model order. */
export async function readWeights(
  { model, weights, signal }: LoadRequest,
  { from, to }: LayerRange,
): Promise<ModelWeights> {
  const read = new ModelReader(weights, signal);
  const embedding = from === 0 ? await read.tensor(model.embedding) : undefined;
  const layers = new Map<number, LayerWeights>();
  for (const { index, attention, attentionNorm, feedForwardNorm, feedForward } of model.layers.slice(
    from,
    to,
  )) {
    const moe = feedForward.kind === "moe" ? feedForward : undefined;
    const specs = moe ? moe.experts : feedForward.kind === "dense" ? [feedForward.mlp] : [];
    const mlps: Mlp[] = [];
    const router = moe && {
      weight: await read.tensor(moe.router.weight),
      bias: await read.optional(moe.router.bias),
      correction: await read.optional(moe.router.correction),
    };
    for (const spec of specs) mlps.push(await read.mlp(spec));
    layers.set(index, {
      attentionNorm: await read.norm(attentionNorm),
      attention: await read.attention(attention),
      feedForwardNorm: await read.norm(feedForwardNorm),
      router,
      mlps,
      shared: moe?.shared && (await read.mlp(moe.shared)),
      sharedGate: await read.optional(moe?.sharedGate),
    });
  }
  const head = to === model.layers.length ? await readHead(model, read, embedding) : undefined;
  return { embedding, layers, head };
}

async function readHead(
  model: MoeModel,
  read: ModelReader,
  embedding: Float32Array | undefined,
): Promise<Head> {
  const tied = model.tied ? embedding : undefined;
  return {
    norm: await read.norm(model.finalNorm),
    weight: tied ?? (await read.tensor(model.head)),
    bias: await read.optional(model.headBias),
  };
}

class ModelReader {
  readonly #reader: WeightReader;
  readonly #signal: AbortSignal | undefined;

  constructor(reader: WeightReader, signal: AbortSignal | undefined) {
    this.#reader = reader;
    this.#signal = signal;
  }

  tensor(ref: TensorRef): Promise<Float32Array> {
    throwIfAborted(this.#signal, `reading ${ref.name}`);
    return this.#reader.read(ref, this.#signal ? { signal: this.#signal } : {});
  }

  async optional(ref: TensorRef | undefined): Promise<Float32Array | undefined> {
    return ref && this.tensor(ref);
  }

  async linear({ weight, bias }: LinearSpec): Promise<Linear> {
    return {
      weight: await this.tensor(weight),
      bias: await this.optional(bias),
      outputs: weight.shape[0] as number,
      inputs: weight.shape[1] as number,
    };
  }

  async norm({ kind, weight, bias, epsilon }: NormSpec): Promise<Norm> {
    return { kind, weight: await this.optional(weight), bias: await this.optional(bias), epsilon };
  }

  async mlp(spec: MlpSpec): Promise<Mlp> {
    return {
      gate: await this.optional(spec.gate),
      up: await this.tensor(spec.up),
      down: await this.tensor(spec.down),
      gateBias: await this.optional(spec.gateBias),
      upBias: await this.optional(spec.upBias),
      downBias: await this.optional(spec.downBias),
      width: spec.width,
      activation: spec.activation,
    };
  }

  attention(spec: AttentionSpec): Promise<GroupedQueryWeights | LatentWeights> {
    if (spec.kind === "other") throw new TypeError(`${spec.name} has no weights that could be read`);
    return readAttention(spec, {
      linear: (part) => this.linear(part),
      norm: (part) => this.norm(part),
      vector: (ref) => this.optional(ref),
    });
  }
}
