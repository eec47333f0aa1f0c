import { CoppiceError, type MoeModel } from "@coppice/core";
import type { Tokenizer } from "./tokenizer.js";

export interface EncodedPrompt {
  readonly ids: Int32Array;
  /** Ids of what follows the prompt. */
  continueWith(text: string): Int32Array;
}

/** Ids of a prompt, in the chat template when asked for. */
export function encodePrompt(
  prompt: string,
  options: { readonly tokenizer: Tokenizer; readonly chat?: boolean },
): EncodedPrompt {
  const { tokenizer, chat = false } = options;
  const text = chat ? tokenizer.renderChat([{ role: "user", content: prompt }]) : prompt;
  const special = !chat;
  const ids = tokenizer.encode(text, { special });
  return {
    ids,
    continueWith(more) {
      const together = tokenizer.encode(text + more, { special });
      return ids.every((id, i) => together[i] === id)
        ? together.slice(ids.length)
        : tokenizer.encode(more, { special: false });
    },
  };
}

/** @throws COPPICE_TASK_TOO_LONG */
export function checkLength(tokens: number, name: string, line: number, model: MoeModel): void {
  if (tokens <= model.contextLength) return;
  throw new CoppiceError(
    "COPPICE_TASK_TOO_LONG",
    `${name}: the sample of line ${line} has ${tokens} tokens; the model's context is ${model.contextLength}`,
    {
      hint: "shorten or remove the sample; nothing is cut off in silence",
      details: { name, line, tokens, context: model.contextLength },
    },
  );
}

/** @throws COPPICE_TOKENIZER */
export function checkIds(ids: Int32Array, { vocabSize }: Pick<MoeModel, "vocabSize">): void {
  const outside = ids.find((id) => id < 0 || id >= vocabSize);
  if (outside === undefined) return;
  throw new CoppiceError(
    "COPPICE_TOKENIZER",
    `the text has the token id ${outside}, the model's vocabulary is 0 to ${vocabSize - 1}`,
    { hint: "the tokenizer files probably belong to another checkpoint" },
  );
}

export function concat(a: ArrayLike<number>, b: ArrayLike<number>): Int32Array {
  const out = new Int32Array(a.length + b.length);
  out.set(a);
  out.set(b, a.length);
  return out;
}
