import type { Plan, Runner, RunRequest } from "@coppice/core";
import { endOfTextTokens } from "./answer-text.js";
import { encodePrompt } from "./encode-prompt.js";
import {
  type Decoder,
  defaultMaxTokens,
  type Generated,
  generateText,
  type TextOptions,
} from "./generate-text.js";
import { cacheAttention, type TextAttention } from "./limited-runner.js";
import type { Tokenizer } from "./tokenizer.js";

export interface GenerateOptions extends TextOptions {
  /** Default: the model as it is. */
  readonly plan?: Plan;
  /** What attention is limited to; plans are resolved at the length of prompt and `maxTokens` together. Default: as the model is. */
  readonly attention?: TextAttention;
  /** The prompt is a user's message, to be put into the checkpoint's chat template. Default false. */
  readonly chat?: boolean;
  /** Called with every token and the text that it completes, which may be empty or end before a `stop` string. */
  readonly onToken?: (token: number, text: string) => void;
}

/**
 * Continues a prompt, token by token, with cached keys and values.
 * @param prompt text, or token ids that are taken as they are
 * @throws COPPICE_USAGE, COPPICE_TASK_TOO_LONG when the prompt exceeds the context, COPPICE_ABORTED
 */
export async function generate(
  runner: Runner,
  tokenizer: Tokenizer,
  prompt: string | Int32Array,
  options: GenerateOptions = {},
): Promise<Generated> {
  const { plan, attention, chat = false, onToken, ...text } = options;
  const { contextLength, vocabSize } = runner.model;
  const ids = typeof prompt === "string" ? encodePrompt(prompt, { tokenizer, chat }).ids : prompt;
  const request = {
    tokenizer,
    prompt: ids,
    contextLength,
    vocabSize,
    endTokens: endOfTextTokens(runner.model, tokenizer),
  };
  const length = Math.min(contextLength, ids.length + (text.maxTokens ?? defaultMaxTokens));
  const cache = runner.createCache(1, attention && cacheAttention(attention, [length]));
  try {
    const pieces = generateText(runnerDecoder(runner, { cache, ...(plan && { plan }) }), request, text);
    let last = 0;
    for (;;) {
      const { done, value } = await pieces.next();
      if (done) return value;
      last = value.token ?? last;
      onToken?.(last, value.text);
    }
  } finally {
    cache.dispose();
  }
}

/** One sequence of a runner, continued with the least that has to be copied out of it. */
export function runnerDecoder(
  runner: Pick<Runner, "run" | "draws">,
  /** What every run has besides its tokens. */
  shared: Pick<RunRequest, "cache" | "plan" | "tap">,
): Decoder {
  const run = (
    tokens: Int32Array,
    signal: AbortSignal | undefined,
    wanted?: Pick<RunRequest, "targets" | "draw">,
  ) =>
    runner.run({
      ...shared,
      sequences: [tokens],
      positions: [Int32Array.of(tokens.length - 1)],
      ...wanted,
      ...(signal && { signal }),
    });
  return {
    logits: async (tokens, signal) => (await run(tokens, signal)).logits ?? new Float32Array(0),
    // Asking about some target returns the most likely token without copying all logits.
    mostLikely: async (tokens, signal) =>
      (await run(tokens, signal, { targets: [Int32Array.of(0)] })).argmax?.[0] ?? 0,
    ...(runner.draws && {
      draw: async (tokens, draw, signal) => (await run(tokens, signal, { draw })).drawn?.[0] ?? 0,
    }),
  };
}
