import type { ActivationSpec, DType, NormalizeSpec, RotaryScaling, RouterSpec } from "@coppice/core";

/** What a random model looks like; every field has a small default. */
export interface RandomModelShape {
  readonly seed?: number;
  readonly layers?: number;
  readonly hidden?: number;
  readonly experts?: number;
  readonly topK?: number;
  /** Rows of gate and up of every expert and dense MLP. */
  readonly width?: number;
  readonly vocab?: number;
  /** Positions; default 256. */
  readonly context?: number;
  /** Layers that have one dense MLP in place of experts. */
  readonly denseLayers?: readonly number[];
  /** Stored dtype; the values in memory are rounded to it. */
  readonly dtype?: DType;

  /** Of attention without `latent`. */
  readonly heads?: number;
  readonly kvHeads?: number;
  readonly headDim?: number;
  /** Attention is multi-head latent attention of these sizes, with `heads` heads. */
  readonly latent?: RandomLatent;
  /** Factor on q·k; default one over the square root of the head size. */
  readonly attentionScale?: number;
  /** Biases on all projections of attention. */
  readonly bias?: boolean;
  /** Norms of queries and keys: over each head (true), over all heads together, or over each head without weight. */
  readonly qkNorm?: boolean | "projection" | "weightless";
  readonly normAfterRotary?: boolean;
  /** Limit on queries, keys and values. */
  readonly clip?: number;
  /** A logit per head that has no value. */
  readonly sinks?: boolean;
  readonly slidingWindow?: number;
  /** Layers with the sliding window; default all. */
  readonly slidingLayers?: readonly number[];
  /** Layers whose positions do not rotate. */
  readonly plainLayers?: readonly number[];
  /** Positions per chunk, in layers that rotate. */
  readonly chunk?: number;
  /** Of queries, in layers that do not rotate. */
  readonly temperature?: { readonly floor: number; readonly scale: number };
  /** Dimensions of each head that rotate; default all. */
  readonly rotaryDimensions?: number;
  readonly interleaved?: boolean;
  readonly theta?: number;
  readonly scaling?: RotaryScaling;

  /** Kind of the norms outside attention; `layer` has biases. */
  readonly norm?: "rms" | "layer";
  /** How gate weights are divided; true: by their sum. */
  readonly normalize?: boolean | NormalizeSpec;
  readonly router?: RandomRouter;
  /** Biases in experts and dense MLPs. */
  readonly mlpBias?: boolean;
  /** Of experts; dense MLPs and shared experts have `silu` unless it is `relu2`, which has no gate. */
  readonly activation?: ActivationSpec;
  /** Width of an expert that every token goes through. */
  readonly sharedWidth?: number;
  /** The shared expert has a gate of its own. */
  readonly sharedGate?: boolean;

  readonly embeddingScale?: number;
  readonly residualScale?: number;
  readonly logitScale?: number;
  readonly headBias?: boolean;
  /** The head is the embedding. */
  readonly tied?: boolean;
}

export interface RandomLatent {
  readonly rank: number;
  /** Rank of the queries; absent: they are projected directly. */
  readonly queryRank?: number;
  readonly nopeDim: number;
  readonly rotaryDim: number;
  readonly valueDim: number;
}

/** What differs from softmax over all experts. */
export interface RandomRouter
  extends Pick<RouterSpec, "scale" | "groups" | "scalesInput" | "jitter" | "skip"> {
  readonly order?: RouterSpec["order"];
  readonly bias?: boolean;
  readonly correction?: boolean;
}
