import { Rng } from "@coppice/core";
import type { EncodedSample, EncodedTask } from "./encode-task.js";

/** The begin of a text that a model will write. Plain data. */
export interface SampleDraft {
  /** Tokens that are given, at least one. */
  readonly head: Int32Array;
  /** Most tokens of the text, the head included. */
  readonly length: number;
  /** Seed of the tokens that are drawn. */
  readonly seed: number;
}

/** How often a sample lends its begin; more of the same begins would say little that is new. */
const mostUses = 10;
/** Tokens that a text may have more than the sample whose begin it has, so that one slightly longer can end. */
const spareTokens = 8;

/**
 * Begins of texts in the domain of a task: samples in random order, round and round, ten times each. A head is from one
 * token to half of the prompt, so that what follows, names and numbers too, is not the sample's.
 */
export function* draftSamples(
  { form, samples }: EncodedTask,
  contextLength: number,
  seed: number,
): Generator<SampleDraft, undefined> {
  const rng = Rng.fromSeed(seed);
  const order = rng.shuffle([...samples]);
  for (let use = 0; use < mostUses; use++) {
    for (const sample of order) {
      const whole = tokensOf(sample);
      const given = form === "text" ? whole.length : sample.promptTokens;
      const head = 1 + rng.integer(Math.max(1, Math.floor(given / 2)));
      yield {
        head: whole.slice(0, head),
        length: Math.min(whole.length + spareTokens, contextLength),
        seed: rng.integer(Number.MAX_SAFE_INTEGER),
      };
    }
  }
}

/** A sample with its (right) answer and the token that ends it. */
function tokensOf({ sequences, choices }: EncodedSample): Int32Array {
  const { ids, targets } = sequences[
    choices && sequences.length > 1 ? choices.right : 0
  ] as (typeof sequences)[number];
  return Int32Array.of(...ids, ...targets.subarray(-1));
}
