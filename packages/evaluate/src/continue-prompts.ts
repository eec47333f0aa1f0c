import { checkWholeNumber, type Runner } from "@coppice/core";
import { endOfTextTokens } from "./answer-text.js";
import { continueBatch } from "./continue-batch.js";
import { concat } from "./encode-prompt.js";
import type { Tokenizer } from "./tokenizer.js";

export interface ContinueOptions {
  /** Most new tokens of each prompt. Default 128. */
  readonly maxTokens?: number;
  readonly signal?: AbortSignal;
}

/**
 * Prompts with what the model itself writes behind them, greedily, side by side: data to calibrate on. A text ends
 * before its end-of-text token, after `maxTokens` or where the model's context is full.
 * @param prompts token ids, at least one each
 * @throws COPPICE_USAGE, COPPICE_ABORTED
 */
export async function continuePrompts(
  runner: Runner,
  tokenizer: Tokenizer,
  prompts: readonly Int32Array[],
  { maxTokens = 128, signal }: ContinueOptions = {},
): Promise<Int32Array[]> {
  checkWholeNumber("maxTokens", maxTokens);
  const ends = endOfTextTokens(runner.model, tokenizer);
  const written = await continueBatch(runner, {
    prompts,
    maxTokens: prompts.map(() => maxTokens),
    done: (_, tokens) => ends.has(tokens.at(-1) as number),
    signal,
  });
  return prompts.map((prompt, i) => {
    const tokens = written[i] as number[];
    const text = ends.has(tokens.at(-1) as number) ? tokens.slice(0, -1) : tokens;
    // The last token of a full context is predicted, but none can stand behind it.
    return concat(prompt, text).slice(0, runner.model.contextLength);
  });
}
