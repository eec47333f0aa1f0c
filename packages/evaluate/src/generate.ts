import { CoppiceError, type Plan, Rng, type Runner, throwIfAborted } from "@coppice/core";
import { endOfTextTokens } from "./answer-text.js";
import { checkIds, encodePrompt } from "./encode-prompt.js";
import { sampleToken } from "./sample-token.js";
import { createTextStream } from "./text-stream.js";
import type { Tokenizer } from "./tokenizer.js";

export interface GenerateOptions {
  /** Default: the model as it is. */
  readonly plan?: Plan;
  /** Most new tokens. Default 128. */
  readonly maxTokens?: number;
  /** 0, the default, always takes the most likely token. */
  readonly temperature?: number;
  /** Samples from the most likely tokens that together have this probability. Default 1: from all. */
  readonly topP?: number;
  /** Default 0. The same seed gives the same text. */
  readonly seed?: number;
  /** Ends the text before the first of these strings. */
  readonly stop?: readonly string[];
  /** The prompt is a user's message, to be put into the checkpoint's chat template. Default false. */
  readonly chat?: boolean;
  /** Called with every token and the text that it completes, which may be empty or end before a `stop` string. */
  readonly onToken?: (token: number, text: string) => void;
  readonly signal?: AbortSignal;
}

export interface Generated {
  /** What was written, without the prompt. */
  readonly text: string;
  readonly tokens: Int32Array;
  readonly promptTokens: number;
  /** `end`: end-of-text; `stop`: a stop string; `length`: `maxTokens` or the model's context. */
  readonly finish: "end" | "stop" | "length";
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
  const {
    plan,
    maxTokens = 128,
    temperature = 0,
    topP = 1,
    stop = [],
    chat = false,
    onToken,
    signal,
  } = options;
  checkOptions(maxTokens, temperature, topP, stop);
  const { model } = runner;
  const ids = typeof prompt === "string" ? encodePrompt(prompt, { tokenizer, chat }).ids : prompt;
  if (ids.length === 0)
    throw new CoppiceError("COPPICE_USAGE", "the prompt has no tokens, expected at least one");
  checkIds(ids, model);
  if (ids.length > model.contextLength) {
    throw new CoppiceError(
      "COPPICE_TASK_TOO_LONG",
      `the prompt has ${ids.length} tokens; the model's context is ${model.contextLength}`,
      { details: { tokens: ids.length, context: model.contextLength } },
    );
  }
  const rng = Rng.fromSeed(options.seed ?? 0);
  const endTokens = endOfTextTokens(model, tokenizer);
  const stream = createTextStream(tokenizer, stop);
  const tokens: number[] = [];
  let finish: Generated["finish"] = "length";
  const cache = runner.createCache(1);
  try {
    let input = ids;
    while (tokens.length < maxTokens && ids.length + tokens.length <= model.contextLength) {
      throwIfAborted(signal, "generating");
      const greedy = temperature === 0;
      const result = await runner.run({
        sequences: [input],
        positions: [Int32Array.of(input.length - 1)],
        ...(greedy && { targets: [Int32Array.of(0)] }),
        cache,
        ...(plan && { plan }),
        ...(signal && { signal }),
      });
      const token = greedy
        ? (result.argmax?.[0] ?? 0)
        : sampleToken(result.logits ?? new Float32Array(1), temperature, topP, rng);
      if (endTokens.has(token)) {
        finish = "end";
        break;
      }
      tokens.push(token);
      const text = stream.push(token);
      onToken?.(token, text);
      if (stream.stopped) {
        finish = "stop";
        break;
      }
      input = Int32Array.of(token);
    }
  } finally {
    cache.dispose();
  }
  const rest = stream.finish();
  if (rest !== "" && tokens.length > 0) onToken?.(tokens.at(-1) as number, rest);
  return { text: stream.text, tokens: Int32Array.from(tokens), promptTokens: ids.length, finish };
}

function checkOptions(maxTokens: number, temperature: number, topP: number, stop: readonly string[]): void {
  const refuse = (name: string, value: unknown, expected: string) => {
    throw new CoppiceError("COPPICE_USAGE", `${name} is ${JSON.stringify(value)}, expected ${expected}`);
  };
  if (!Number.isSafeInteger(maxTokens) || maxTokens < 1) {
    refuse("maxTokens", maxTokens, "a whole number of at least 1");
  }
  if (!(temperature >= 0 && temperature <= 100)) refuse("temperature", temperature, "0 to 100");
  if (!(topP > 0 && topP <= 1)) refuse("topP", topP, "more than 0, at most 1");
  if (stop.includes("")) refuse("stop", stop, "strings that are not empty");
}
