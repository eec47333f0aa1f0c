import type { SkipRule } from "./plan.js";
import type { TensorRef } from "./tensor.js";

/** `y = x Wᵀ + b`; weight has shape [out, in]. */
export interface LinearSpec {
  readonly weight: TensorRef;
  readonly bias?: TensorRef;
}

/**
 * Normalisation over the last axis, times weight, plus bias, where present. `rms`: `x / sqrt(mean(x²) + epsilon)`;
 * `layer`: `(x - mean(x)) / sqrt(variance(x) + epsilon)` (Phi-3.5-MoE).
 */
export interface NormSpec {
  readonly kind: "rms" | "layer";
  readonly weight?: TensorRef;
  readonly bias?: TensorRef;
  readonly epsilon: number;
}

/**
 * How rotary frequencies are stretched for long contexts; names and formulas of `rope_type` in Hugging Face
 * transformers, see `rotaryFrequencies`.
 */
export type RotaryScaling =
  | { readonly kind: "linear"; readonly factor: number }
  | { readonly kind: "dynamic"; readonly factor: number; readonly originalContext: number }
  | {
      /** YaRN, arXiv 2309.00071. */
      readonly kind: "yarn";
      readonly factor: number;
      readonly originalContext: number;
      readonly betaFast: number;
      readonly betaSlow: number;
      /** Factor on cos and sin. */
      readonly attentionFactor: number;
      /** Whether the borders of the ramp are rounded to whole dimensions. */
      readonly truncate: boolean;
    }
  | {
      readonly kind: "llama3";
      readonly factor: number;
      readonly lowFrequencyFactor: number;
      readonly highFrequencyFactor: number;
      readonly originalContext: number;
    }
  | {
      /** LongRoPE, arXiv 2402.13753: a divisor per frequency, one list up to the original context, one beyond. */
      readonly kind: "longrope";
      readonly shortFactors: readonly number[];
      readonly longFactors: readonly number[];
      readonly originalContext: number;
      /** Factor on cos and sin, and the one beyond the original context where it differs (Phi-3.5-MoE). */
      readonly attentionFactor: number;
      readonly longAttentionFactor?: number;
    };

export interface RotarySpec {
  readonly theta: number;
  /** Dimensions of each head that rotate: the first ones of grouped-query heads, the last ones of latent heads. */
  readonly dimensions: number;
  /** True: dimension 2i rotates with 2i + 1 (DeepSeek, Llama-4, ERNIE); false: i with i + dimensions / 2. */
  readonly interleaved: boolean;
  readonly scaling?: RotaryScaling;
}

/**
 * A norm of queries or keys. `head`: over each head, weight [headDim] (Qwen3); `projection`: over all heads of a
 * token together, weight [heads * headDim] (OLMoE, MiniMax-M2).
 */
export interface HeadNormSpec extends NormSpec {
  readonly over: "head" | "projection";
}

/** What both kinds of attention have. Attention is causal. */
interface AttentionBase {
  readonly heads: number;
  /** Factor on q·k before softmax. */
  readonly scale: number;
  readonly output: LinearSpec;
  /** A position sees itself and the `slidingWindow - 1` positions before it; absent: all before it. */
  readonly slidingWindow?: number;
}

/**
 * Grouped-query attention. In this order: projections (weights [heads * headDim, hidden]), norms (unless
 * `normAfterRotary`), clip, rotation, norms (if `normAfterRotary`), temperature, attention, output.
 */
export interface GroupedQueryAttentionSpec extends AttentionBase {
  readonly kind: "gqa";
  readonly kvHeads: number;
  readonly headDim: number;
  readonly query: LinearSpec;
  readonly key: LinearSpec;
  readonly value: LinearSpec;
  readonly queryNorm?: HeadNormSpec;
  readonly keyNorm?: HeadNormSpec;
  /** HunYuan, Llama-4. */
  readonly normAfterRotary?: true;
  /** Queries, keys and values are limited to ±clip (OLMoE `clip_qkv`). */
  readonly clip?: number;
  /** Absent: positions do not rotate (some layers of Llama-4). */
  readonly rotary?: RotarySpec;
  /** [heads], one logit per head that takes part in the softmax and has no value (GPT-OSS). */
  readonly sinks?: TensorRef;
  /** A position sees only those of its own chunk of this many positions, counted from 0 (Llama-4). */
  readonly chunk?: number;
  /** Queries at position p are multiplied by `1 + scale * ln(1 + floor((p + 1) / floor))` (Llama-4). */
  readonly temperature?: { readonly floor: number; readonly scale: number };
}

/**
 * Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434). Every query head has `nopeDim` plain and then
 * `rotary.dimensions` rotating values. Keys and values come from `kvDown` [rank + rotary.dimensions, hidden]: its last
 * outputs rotate and are the rotating key part of all heads; the first `rank` go through `kvNorm` and `kvUp`
 * [heads * (nopeDim + valueDim), rank], which gives each head its plain key part and then its value.
 */
export interface LatentAttentionSpec extends AttentionBase {
  readonly kind: "mla";
  readonly nopeDim: number;
  readonly valueDim: number;
  readonly rank: number;
  /** [heads * (nopeDim + rotary.dimensions), hidden], or of the low rank that `queryDown` and `queryNorm` give. */
  readonly query: LinearSpec;
  readonly queryDown?: LinearSpec;
  readonly queryNorm?: NormSpec;
  readonly kvDown: LinearSpec;
  readonly kvNorm: NormSpec;
  readonly kvUp: LinearSpec;
  readonly rotary: RotarySpec;
}

/** A token mixer that Coppice does not run, in families whose experts are edited only. */
export interface OtherMixerSpec {
  readonly kind: "other";
  /** What it is, for messages: "Mamba-2", "attention". */
  readonly name: string;
}

export type AttentionSpec = GroupedQueryAttentionSpec | LatentAttentionSpec | OtherMixerSpec;

/**
 * `silu`: `down(silu(gate(x)) * up(x))`; `clamped-swiglu` (GPT-OSS): with g = min(gate(x), limit) and
 * u = clamp(up(x), ±limit), `down((u + 1) * g * sigmoid(alpha * g))`; `relu2` (Nemotron-H): `down(relu(up(x))²)`.
 */
export type ActivationSpec =
  | { readonly kind: "silu" }
  | { readonly kind: "clamped-swiglu"; readonly limit: number; readonly alpha: number }
  | { readonly kind: "relu2" };

/** One expert, or the MLP of a dense layer. */
export interface MlpSpec {
  /** [width, hidden]; absent exactly when the activation is `relu2`. */
  readonly gate?: TensorRef;
  /** [width, hidden] */
  readonly up: TensorRef;
  /** [hidden, width] */
  readonly down: TensorRef;
  readonly gateBias?: TensorRef;
  readonly upBias?: TensorRef;
  readonly downBias?: TensorRef;
  /** Rows of up. */
  readonly width: number;
  readonly activation: ActivationSpec;
}

/**
 * How router logits z = x Wᵀ + bias become gate weights; `routeTokens` defines each order exactly.
 *
 * - `softmax-topk`: softmax over all experts, then the top-k (Mixtral, Qwen, OLMoE, DeepSeek-V2, ERNIE, HunYuan)
 * - `sigmoid-topk`: sigmoid of each logit, then the top-k (DeepSeek-V3, GLM-4.5, Kimi, MiniMax-M2)
 * - `topk-softmax`: top-k of the logits, then softmax over those (GPT-OSS, Granite)
 * - `topk-sigmoid`: top-k of the logits, then sigmoid of each (Llama-4)
 * - `sparsemixer`: two experts, one after the other (Phi-3.5-MoE, arXiv 2409.12136)
 */
export interface RouterSpec {
  /** Shape [experts, hidden]. */
  readonly weight: TensorRef;
  /** Part of the logits, [experts] (GPT-OSS). */
  readonly bias?: TensorRef;
  /** Added to the scores for the choice alone, [experts] (DeepSeek-V3 `e_score_correction_bias`). */
  readonly correction?: TensorRef;
  readonly order: "softmax-topk" | "sigmoid-topk" | "topk-softmax" | "topk-sigmoid" | "sparsemixer";
  readonly topK: number;
  /** Absent: the scores of the chosen are the gate weights. */
  readonly normalize?: NormalizeSpec;
  /** Factor on all gate weights; absent: 1. */
  readonly scale?: number;
  /** The choice is limited to the experts of some groups. */
  readonly groups?: RouterGroups;
  /** True: a gate weight multiplies the expert's input instead of its output (Llama-4). */
  readonly scalesInput?: true;
  /** Tolerance of `sparsemixer`: experts within 2 * jitter of the best, relatively, share the softmax. */
  readonly jitter?: number;
  /** A rule that the checkpoint brings along (Coppice's runtime layout); a plan's rule takes its place. */
  readonly skip?: SkipRule;
}

/** The gate weights of the chosen are divided by `max(‖g‖_p, least) + epsilon`. */
export interface NormalizeSpec {
  /** 1: by their sum; other values: by their L_p norm (DBRX). */
  readonly power: number;
  /** ERNIE `moe_norm_min`; absent: 0. */
  readonly least?: number;
  /** DeepSeek-V3: 1e-20; absent: 0. */
  readonly epsilon?: number;
}

/**
 * Experts in groups of consecutive experts, equal in size. A group's score is its largest selection score (`max`,
 * DeepSeek-V2) or the sum of its two largest (`top2`, DeepSeek-V3); the top-k is taken from the `keep` best groups.
 */
export interface RouterGroups {
  readonly count: number;
  readonly keep: number;
  readonly score: "max" | "top2";
}

export interface MoeSpec {
  readonly kind: "moe";
  readonly router: RouterSpec;
  readonly experts: readonly MlpSpec[];
  /** An MLP that every token goes through, added to the routed experts. */
  readonly shared?: MlpSpec;
  /** [1, hidden]: the shared expert's output is multiplied by the sigmoid of this projection (Qwen2-MoE). */
  readonly sharedGate?: TensorRef;
}

export interface DenseSpec {
  readonly kind: "dense";
  readonly mlp: MlpSpec;
}

/** A feed-forward block without experts that Coppice does not run, in families that are edited only. */
export interface OtherFeedForwardSpec {
  readonly kind: "other";
}

export interface DecoderLayer {
  /** Position in the model, from 0. */
  readonly index: number;
  readonly attentionNorm: NormSpec;
  readonly attention: AttentionSpec;
  readonly feedForwardNorm: NormSpec;
  readonly feedForward: MoeSpec | DenseSpec | OtherFeedForwardSpec;
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
  /**
   * Fingerprints of the checkpoints that this one was made from, the last first, when its `coppice.json` says so. Their layers
   * and heads are the same, so that attention plans made for one of them fit.
   */
  readonly derivedFrom?: readonly string[];
  readonly hiddenSize: number;
  readonly vocabSize: number;
  /** Most positions the model was made for. */
  readonly contextLength: number;
  readonly embedding: TensorRef;
  /** Factor on the embeddings (Granite); absent: 1. */
  readonly embeddingScale?: number;
  readonly layers: readonly DecoderLayer[];
  /** Factor on what attention and feed-forward block add to the residual stream (Granite); absent: 1. */
  readonly residualScale?: number;
  readonly finalNorm: NormSpec;
  /** Shape [vocab, hidden]; the embedding itself when the two are tied. */
  readonly head: TensorRef;
  /** [vocab] */
  readonly headBias?: TensorRef;
  /** Factor on the logits (Granite: 1 / `logits_scaling`); absent: 1. */
  readonly logitScale?: number;
  readonly tied: boolean;
  /** Token ids that end a text; may be empty. */
  readonly endTokens: readonly number[];
  readonly beginToken?: number;
  /**
   * Why no backend runs this model, whose experts can be edited all the same; absent: it is described completely. Then
   * norms of layers have no weight and attention is of the kind `other`.
   */
  readonly editOnly?: string;
  /**
   * Tensors that belong to the model and take no part in the description above: vision towers, and in a model that is
   * edited only everything around the experts.
   */
  readonly undescribed?: readonly TensorRef[];
}

/** A decoder layer that is known to have experts. */
export interface MoeLayer extends DecoderLayer {
  readonly feedForward: MoeSpec;
}

export function moeLayers(model: Pick<MoeModel, "layers">): MoeLayer[] {
  return model.layers.filter((layer): layer is MoeLayer => layer.feedForward.kind === "moe");
}

/** The layer as it is under a plan with this top-k, by which its groups and its fewest experts go; undefined: its own. */
export function withTopK(layer: MoeLayer, topK: number | undefined): MoeLayer {
  const { feedForward } = layer;
  if (topK === undefined) return layer;
  return { ...layer, feedForward: { ...feedForward, router: { ...feedForward.router, topK } } };
}
