import type { HeadSpan } from "./attention-spans.js";

/** Version of the attention plan file that this package writes and reads. */
export const attentionPlanVersion = 1;

/**
 * How many tokens a KV head may see of a context of N: `span(N) = alpha + beta * N`, rounded up to whole blocks, sinks
 * included (MoA, arXiv 2406.14909, section 4.1). At least the sinks and what fills their last block, or one block more.
 */
export interface SpanRule {
  /** Tokens; may be negative. */
  readonly alpha: number;
  /** Share of the context, from 0 to 1. */
  readonly beta: number;
}

/** Which model an attention plan was made for. The sizes are those of its layers of grouped-query attention. */
export interface AttentionPlanModel {
  readonly family: string;
  readonly fingerprint: string;
  /** Decoder layers. */
  readonly layers: number;
  /** Query heads per layer. */
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
}

/**
 * How far back every KV head of a model sees. A query at position i sees key j <= i when j is one of the first `sinks`
 * positions or j > i - window, where window = span - sinks; heads whose span is not shorter than the context see all of it.
 */
export interface AttentionPlan {
  readonly format: "coppice.attention";
  readonly version: typeof attentionPlanVersion;
  readonly model: AttentionPlanModel;
  /** Tokens per block; spans are whole blocks. */
  readonly blockSize: number;
  /** First tokens that every head with a limited span keeps. */
  readonly sinks: number;
  /** `{ alpha: 0, beta: 1 }` is dense. */
  readonly rules: readonly SpanRule[];
  /**
   * Decoder layer -> index into `rules` of each KV head; null: the layer stays as the model has it, as layers must that are
   * not grouped-query attention or that slide or have chunks already.
   */
  readonly layers: readonly (readonly number[] | null)[];
  /** What the method that made the plan says of it, such as predicted losses; no runtime reads it. */
  readonly report?: Readonly<Record<string, unknown>>;
}

/** What a run, or a cache for its whole life, limits attention to: exactly one of `plan` and `masker`. */
export interface RunAttention {
  /** A valid plan for the model (`parseAttentionPlan`). */
  readonly plan?: AttentionPlan;
  /**
   * Tokens of context that the plan's rules are resolved at, one per sequence; default: for a run without a cache the tokens
   * of the sequence in this run, for a cache the model's `contextLength`. A text that is scored in one run and one that
   * is generated agree when both name the length of the whole text. Spans stay when a sequence grows beyond.
   */
  readonly lengths?: readonly number[];
  /** Decides what is seen prompt by prompt. One that keeps state serves one cache, or one run. */
  readonly masker?: AttentionMasker;
}

/** Chooses what heads see from the queries and keys of a text, while it runs. */
export interface AttentionMasker {
  /**
   * Called for every layer that a plan could limit and every sequence that a run starts from its first token, with or
   * without a cache, unless it is one token alone.
   * @returns what query heads see, causal besides; undefined: all before them. Blocks on the diagonal must be in it
   */
  prefill?(view: PrefillView): BlockMask | undefined;
  /**
   * Called for every such layer and every sequence of which a run with a cache has one token, unless it is the first.
   * Runs of several tokens that continue a cache see all before them.
   * @returns the keys that KV heads read; undefined: all. The page of the newest key must be among them
   */
  decode?(view: DecodeView): KeyPages | undefined;
}

interface AttentionView {
  readonly layer: number;
  /** Of the run's batch. */
  readonly sequence: number;
  /** Factor on q·k before softmax. */
  readonly scale: number;
  /** Query heads; head h reads KV head `floor(h * kvHeads / heads)`. */
  readonly heads: number;
  readonly kvHeads: number;
  readonly keyDim: number;
}

/** The arrays may be reused when the masker has returned. */
export interface PrefillView extends AttentionView {
  readonly tokens: number;
  /** [tokens, heads * keyDim], positions turned into them. */
  readonly queries: Float32Array;
  /** [tokens, kvHeads * keyDim], positions turned into them. */
  readonly keys: Float32Array;
}

/** The arrays may be reused when the masker has returned. */
export interface DecodeView extends AttentionView {
  /** Keys that there are, that of the token itself included. */
  readonly positions: number;
  /** [heads * keyDim] */
  readonly queries: Float32Array;
  /** [positions, kvHeads * keyDim] */
  readonly keys: Float32Array;
}

/** Keys in pages of consecutive positions: page p holds those of `p * pageSize` to `(p + 1) * pageSize`, without the last. */
export interface KeyPages {
  readonly pageSize: number;
  /** One ascending list of pages per KV head. */
  readonly heads: readonly Int32Array[];
}

/**
 * Which blocks of queries see which blocks of keys: the layout of ONNX Runtime's operator com.microsoft SparseAttention.
 * Query head h uses layout `h % layouts`. Within a block on the diagonal a query sees itself and what is before it.
 */
export interface BlockMask {
  /** Tokens per block. */
  readonly blockSize: number;
  /** Blocks of queries, and of keys. */
  readonly blocks: number;
  readonly layouts: number;
  /** [layouts, blocks + 1]: columns of row r of a layout stand at `rows[r]` to `rows[r + 1]` of its part of `columns`. */
  readonly rows: Int32Array;
  /** [layouts, most columns of a layout], blocks of keys, ascending in every row; -1 pads. */
  readonly columns: Int32Array;
}

/** Spans of the KV heads of one layer; undefined for a head that sees everything. */
export type LayerSpans = readonly (HeadSpan | undefined)[];
