import type { MoeModel, WeightReader } from "@coppice/core";

/** A tiny checkpoint with what the reference implementation of its family computes on it. */
export interface Fixture {
  readonly name: string;
  readonly model: MoeModel;
  readonly weights: WeightReader;
  readonly golden: Golden;
}

export interface Golden {
  /** Two sequences of 24 tokens. */
  readonly sequences: readonly Int32Array[];
  /** [48, vocab], logits at every position, sequence by sequence. */
  readonly logits: Float32Array;
  /** Tokens that greedy decoding appends to the first sequence. */
  readonly greedy: Int32Array;
  /** One entry per MoE layer. */
  readonly routers: readonly GoldenRouter[];
}

export interface GoldenRouter {
  /** [48, experts] */
  readonly logits: Float32Array;
  /** [48, k], by descending gate weight. */
  readonly gates: Float32Array;
  readonly experts: Int32Array;
}

/** A fixture that is loaded when a case needs it. */
export interface FixtureSource {
  readonly name: string;
  load(): Promise<Fixture>;
}
