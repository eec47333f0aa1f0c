import { parseAttentionPlan } from "./attention-parse.js";
import type { AttentionMasker, AttentionPlan, RunAttention } from "./attention-plan.js";
import type { AttentionCapabilities } from "./backend.js";
import { CoppiceError } from "./errors.js";
import type { MoeModel } from "./model.js";

/** What attention is limited to, checked, with one length per sequence. */
export type CheckedAttention =
  | { readonly plan: AttentionPlan; readonly lengths: readonly number[]; readonly masker?: undefined }
  | { readonly masker: AttentionMasker; readonly plan?: undefined };

/**
 * Checks what a run or a cache limits attention to, so that every backend refuses the same with the same words. A plan is
 * small, so all of it is checked every time.
 * @param lengths of the sequences, where the request names none: their tokens in a run, the model's context for a cache
 * @param known what the backend can do; default nothing
 * @throws COPPICE_USAGE, COPPICE_ATTENTION_LENGTH, COPPICE_BACKEND_UNSUPPORTED, and what `parseAttentionPlan` does
 */
export function checkRunAttention(
  model: MoeModel,
  attention: RunAttention,
  lengths: readonly number[],
  known?: AttentionCapabilities,
): CheckedAttention {
  const { plan, masker } = attention;
  if ((plan === undefined) === (masker === undefined)) {
    throw refused(`give a plan or a masker, not ${plan ? "both" : "neither"}`);
  }
  if (masker) {
    if (attention.lengths) throw refused("lengths are given with a masker, which has no rules to resolve");
    if (masker.prefill && !known?.prefillMasks) throw unsupported("masks of prompts");
    if (masker.decode && !known?.decodePages) throw unsupported("the choice of pages of keys");
    return { masker };
  }
  if (!known?.spans) throw unsupported("attention plans");
  parseAttentionPlan(plan, model);
  const given = attention.lengths ?? lengths;
  if (given.length !== lengths.length) {
    throw refused(`it has ${given.length} lengths for ${lengths.length} sequences`);
  }
  given.forEach((length, sequence) => {
    if (!Number.isSafeInteger(length) || length < 1)
      throw refused(`the length of sequence ${sequence} is ${length}, expected a whole number of at least 1`);
    if (attention.lengths && length > model.contextLength) {
      throw new CoppiceError(
        "COPPICE_ATTENTION_LENGTH",
        `attention of sequence ${sequence} is to be resolved at ${length} tokens; the model has ${model.contextLength} positions`,
      );
    }
  });
  return { plan: plan as AttentionPlan, lengths: given };
}

function refused(message: string): CoppiceError {
  return new CoppiceError("COPPICE_USAGE", `not usable as attention of a run: ${message}`);
}

function unsupported(what: string): CoppiceError {
  return new CoppiceError("COPPICE_BACKEND_UNSUPPORTED", `this backend does not know ${what}`, {
    hint: "the reference backend knows all of them",
  });
}
