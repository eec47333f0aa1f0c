import type { TensorRef } from "./tensor.js";

/** `y = x Wᵀ + b`; weight has shape [out, in], as checkpoints store it. */
export interface LinearSpec {
  readonly weight: TensorRef;
  readonly bias?: TensorRef;
}

/** Root-mean-square normalisation over the last axis, times weight. */
export interface NormSpec {
  readonly weight: TensorRef;
  readonly epsilon: number;
}

export interface RotarySpec {
  readonly theta: number;
  /** Dimensions of each head that rotate (all of them unless the family rotates a part). */
  readonly dimensions: number;
}

/** Grouped-query attention with rotary positions (half-split rotation) and causal masking. */
export interface AttentionSpec {
  readonly kind: "gqa";
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  /** Factor on q·k before softmax, usually headDim ** -0.5. */
  readonly scale: number;
  readonly query: LinearSpec;
  readonly key: LinearSpec;
  readonly value: LinearSpec;
  readonly output: LinearSpec;
  /** Norm over each head of the query or key, before rotation (Qwen3). */
  readonly queryNorm?: NormSpec;
  readonly keyNorm?: NormSpec;
  readonly rotary: RotarySpec;
  /** A position sees itself and the `slidingWindow - 1` positions before it; absent: all before it. */
  readonly slidingWindow?: number;
}

/** `down(activation(gate(x)) * up(x))`. */
export interface GatedMlpSpec {
  readonly gate: TensorRef;
  readonly up: TensorRef;
  readonly down: TensorRef;
  /** Rows of gate and up. */
  readonly width: number;
  readonly activation: "silu";
}

/**
 * How router logits become gate weights. `softmax-topk`: softmax over all experts in float32, then the
 * top-k, then division by their sum when `normalize` (Mixtral, Qwen3-MoE).
 */
export interface RouterSpec {
  /** Shape [experts, hidden]. */
  readonly weight: TensorRef;
  readonly order: "softmax-topk";
  readonly normalize: boolean;
  readonly topK: number;
}

export interface MoeSpec {
  readonly kind: "moe";
  readonly router: RouterSpec;
  readonly experts: readonly GatedMlpSpec[];
}

export interface DenseSpec {
  readonly kind: "dense";
  readonly mlp: GatedMlpSpec;
}

export interface DecoderLayer {
  /** Position in the model, from 0. */
  readonly index: number;
  readonly attentionNorm: NormSpec;
  readonly attention: AttentionSpec;
  readonly feedForwardNorm: NormSpec;
  readonly feedForward: MoeSpec | DenseSpec;
}

/**
 * A decoder-only MoE language model, described without holding a weight. Immutable; safe to share and,
 * being plain data, to post to a worker.
 */
export interface MoeModel {
  /** Name of the family description that recognised it: "mixtral", "qwen3_moe". */
  readonly family: string;
  /** Identity of the weights: equal for the same checkpoint wherever it lies. */
  readonly fingerprint: string;
  readonly hiddenSize: number;
  readonly vocabSize: number;
  /** Most positions the model was made for. */
  readonly contextLength: number;
  readonly embedding: TensorRef;
  readonly layers: readonly DecoderLayer[];
  readonly finalNorm: NormSpec;
  /** Shape [vocab, hidden]; the embedding itself when the two are tied. */
  readonly head: TensorRef;
  readonly tied: boolean;
  /** Token ids that end a text; may be empty. */
  readonly endTokens: readonly number[];
  readonly beginToken?: number;
}

/** A decoder layer that is known to have experts. */
export interface MoeLayer extends DecoderLayer {
  readonly feedForward: MoeSpec;
}

export function moeLayers(model: MoeModel): MoeLayer[] {
  return model.layers.filter((layer): layer is MoeLayer => layer.feedForward.kind === "moe");
}
