import { CoppiceError, type TokenDraw, throwIfAborted } from "@coppice/core";
import { checkIds } from "./encode-prompt.js";
import { drawOf, refuse, Sampler, type SamplingOptions } from "./sampling.js";
import { createTextStream } from "./text-stream.js";
import type { Tokenizer } from "./tokenizer.js";

/** One sequence that a model continues: all that generation needs of whatever runs the model. */
export interface Decoder {
  /**
   * Runs `tokens` behind those of the calls before.
   * @returns logits of what follows the last of them, [vocab]; valid until the next call
   */
  logits(tokens: Int32Array, signal?: AbortSignal): Promise<Float32Array>;
  /** The same, but only the most likely token (ties to the lower id), where that takes less than all logits. */
  mostLikely?(tokens: Int32Array, signal?: AbortSignal): Promise<number>;
  /** The same, but only the token that is drawn, where that takes less than all logits. */
  draw?(tokens: Int32Array, draw: TokenDraw, signal?: AbortSignal): Promise<number>;
}

export const defaultMaxTokens = 128;

export interface TextOptions extends SamplingOptions {
  /** Most new tokens. Default 128. */
  readonly maxTokens?: number;
  /** Ends the text before the first of these strings. */
  readonly stop?: readonly string[];
  readonly signal?: AbortSignal;
}

/** What is continued, and where that ends. */
export interface TextRequest {
  readonly tokenizer: Tokenizer;
  /** At least one token. */
  readonly prompt: Int32Array;
  /** Most tokens that the model can look back on. */
  readonly contextLength: number;
  readonly vocabSize: number;
  /** Tokens that end the text. */
  readonly endTokens: ReadonlySet<number>;
}

/** A token, and the text that is certain since: none while a character or a stop string may be incomplete. */
export interface TextPiece {
  readonly text: string;
  /** Absent for text that was held back to the end. */
  readonly token?: number;
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
 * Continues a prompt token by token; the next one is computed when the consumer asks for it.
 * @throws COPPICE_USAGE, COPPICE_TOKENIZER for ids beyond the vocabulary, COPPICE_TASK_TOO_LONG when the prompt exceeds
 * the context, COPPICE_ABORTED; the decoder's own errors
 */
export async function* generateText(
  decoder: Decoder,
  request: TextRequest,
  options: TextOptions = {},
): AsyncGenerator<TextPiece, Generated, undefined> {
  const { tokenizer, prompt, contextLength, endTokens } = request;
  const { maxTokens = defaultMaxTokens, stop = [], signal } = options;
  checkTextOptions(options);
  checkPrompt(request);
  const sampler = new Sampler(options, prompt);
  const stream = createTextStream(tokenizer, stop);
  const tokens: number[] = [];
  let finish: Generated["finish"] = "length";
  let input = prompt;
  while (tokens.length < maxTokens && prompt.length + tokens.length <= contextLength) {
    throwIfAborted(signal, "generating");
    const token = await nextToken(decoder, sampler, input, signal);
    if (endTokens.has(token)) {
      finish = "end";
      break;
    }
    tokens.push(token);
    const text = stream.push(token);
    yield { token, text };
    if (stream.stopped) {
      finish = "stop";
      break;
    }
    input = Int32Array.of(token);
  }
  const rest = stream.finish();
  if (rest !== "") yield { text: rest };
  return { text: stream.text, tokens: Int32Array.from(tokens), promptTokens: prompt.length, finish };
}

async function nextToken(
  decoder: Decoder,
  sampler: Sampler,
  input: Int32Array,
  signal: AbortSignal | undefined,
): Promise<number> {
  if (sampler.takesMostLikely && decoder.mostLikely) return decoder.mostLikely(input, signal);
  if (decoder.draw) return sampler.take(await decoder.draw(input, drawOf([sampler]), signal));
  return sampler.next(await decoder.logits(input, signal));
}

/** @throws COPPICE_USAGE */
function checkTextOptions({ maxTokens = 1, stop = [] }: TextOptions): void {
  if (!Number.isSafeInteger(maxTokens) || maxTokens < 1) {
    refuse("maxTokens", maxTokens, "a whole number of at least 1");
  }
  if (stop.includes("")) refuse("stop", stop, "strings that are not empty");
}

function checkPrompt(request: TextRequest): void {
  const { prompt, contextLength } = request;
  if (prompt.length === 0) {
    throw new CoppiceError("COPPICE_USAGE", "the prompt has no tokens, expected at least one");
  }
  checkIds(prompt, request);
  if (prompt.length > contextLength) {
    throw new CoppiceError(
      "COPPICE_TASK_TOO_LONG",
      `the prompt has ${prompt.length} tokens; the model's context is ${contextLength}`,
      { details: { tokens: prompt.length, context: contextLength } },
    );
  }
}
