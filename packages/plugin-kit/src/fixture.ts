import type { MoeModel, WeightReader } from "@coppice/core";

/** A tiny checkpoint with what the reference implementation of its family computes on it. */
export interface Fixture {
  readonly name: string;
  readonly model: MoeModel;
  readonly weights: WeightReader;
  readonly golden: Golden;
}

export interface Golden {
  /** Sequences of equal length; together they have T tokens. */
  readonly sequences: readonly Int32Array[];
  /** [T, vocab], logits at every position, sequence by sequence. */
  readonly logits: Float32Array;
  /** Tokens that greedy decoding appends to the first sequence. */
  readonly greedy: Int32Array;
  /** One entry per MoE layer whose router gives away what it does. */
  readonly routers: readonly GoldenRouter[];
}

export interface GoldenRouter {
  readonly layer: number;
  /** [T, experts] */
  readonly logits: Float32Array;
  /** [T, k], in any order within a token: reference implementations with sigmoid scores do not sort. */
  readonly gates: Float32Array;
  /** [T, k], in the order of `gates`. */
  readonly experts: Int32Array;
}

/** A fixture that is loaded when a case needs it. */
export interface FixtureSource {
  readonly name: string;
  load(): Promise<Fixture>;
}
