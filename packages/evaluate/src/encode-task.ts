import { CoppiceError, type MoeModel } from "@coppice/core";
import { answerEndingTokens, endOfTextTokens, likelyEnds, normalizeAnswer } from "./answer-text.js";
import { checkIds, checkLength, concat, encodePrompt } from "./encode-prompt.js";
import { encodeTextTask } from "./encode-text.js";
import type { ChoicesSample, GenerationSample, Task, TaskForm } from "./task.js";
import type { Tokenizer } from "./tokenizer.js";

/** One sequence that the model reads, and what should come where. */
export interface EncodedSequence {
  readonly ids: Int32Array;
  /** Ascending positions after which a token is expected. */
  readonly positions: Int32Array;
  /** The expected token after each position; at the end of an answer the first of `EncodedTask.endTokens`. */
  readonly targets: Int32Array;
}

/** A sample as token ids. */
export interface EncodedSample {
  readonly line: number;
  /** One; for choices of several tokens one per choice. */
  readonly sequences: readonly EncodedSequence[];
  /** Tokens of the prompt at the head of every sequence; 0 for text. */
  readonly promptTokens: number;
  /** Generation: the expected answer in the form in which answers are compared. */
  readonly gold?: string;
  /** Generation: what a right answer cannot do without, where the sample says so. */
  readonly keywords?: readonly string[];
  readonly choices?: {
    readonly right: number;
    /** UTF-8 bytes of every choice. */
    readonly bytes: readonly number[];
    /** The token of every choice, when all choices of the task have one: they are read off one row of logits. */
    readonly tokens?: Int32Array;
  };
}

/** A task for one model and tokenizer. Plain data. */
export interface EncodedTask {
  readonly name: string;
  readonly form: TaskForm;
  readonly samples: readonly EncodedSample[];
  /** Tokens that end an answer; see `answerEndingTokens`. */
  readonly ending: ReadonlySet<number>;
  /** Those of them that end any text. */
  readonly endOfText: ReadonlySet<number>;
  /** Ending tokens whose probabilities add up to that of the end; see `likelyEnds`. */
  readonly endTokens: readonly number[];
  /** True when the choices are read off logits; see `EncodedSample.choices.tokens`. */
  readonly readsLogits: boolean;
}

export interface EncodeOptions {
  readonly tokenizer: Tokenizer;
  readonly model: MoeModel;
  /**
   * Wraps every prompt as a user's message in the checkpoint's chat template; the answer is then what the assistant
   * says, so white space at its begin is dropped. Default false: base models and models tuned on bare prompts
   * expect none.
   */
  readonly chat?: boolean;
  /** Keeps the first samples only (for text: the first windows). */
  readonly limit?: number;
  /** Text: most tokens of a window. Default 2,048, or the model's context when that is shorter. */
  readonly window?: number;
}

/**
 * Turns a task into token ids.
 *
 * The model is shown the ids of the prompt alone, as in generation. The ids of an answer are those that follow them
 * when prompt and answer are encoded together; where the border would merge into one token, the answer is encoded
 * by itself.
 *
 * @throws COPPICE_TASK_TOO_LONG, COPPICE_TASK_LINE for an answer without tokens, COPPICE_TOKENIZER when the
 * tokenizer has ids that the model does not
 */
export function encodeTask(task: Task, options: EncodeOptions): EncodedTask {
  const { tokenizer, model, limit } = options;
  const ending = answerEndingTokens(model, tokenizer);
  const endTokens = likelyEnds(model, tokenizer);
  const [endToken] = endTokens;
  if (endToken === undefined) {
    throw new CoppiceError(
      "COPPICE_TOKENIZER",
      "neither the model nor the tokenizer has an end-of-text or line break token, so no answer could end",
      { hint: "name eos_token in tokenizer_config.json or eos_token_id in config.json" },
    );
  }
  const endOfText = endOfTextTokens(model, tokenizer);
  const common = { name: task.name, form: task.form, ending, endOfText, endTokens };
  if (task.form === "text") {
    return { ...common, samples: encodeTextTask(task, options), readsLogits: false };
  }
  const samples = limit === undefined ? task.samples : (task.samples.slice(0, limit) as typeof task.samples);
  if (task.form === "generation") {
    const encoded = (samples as readonly GenerationSample[]).map((sample) =>
      encodeGeneration(sample, task.name, options, endToken),
    );
    return { ...common, samples: encoded, readsLogits: false };
  }
  return { ...common, ...encodeChoices(samples as readonly ChoicesSample[], task.name, options) };
}

function encodeGeneration(
  sample: GenerationSample,
  name: string,
  options: EncodeOptions,
  endToken: number,
): EncodedSample {
  const prompt = encodePrompt(sample.prompt, options);
  const text = sample.answer.trimEnd();
  const answer = prompt.continueWith(options.chat ? text.trimStart() : text);
  const gold = normalizeAnswer(options.tokenizer.decode(answer));
  if (gold === "") throw noTokens(name, sample.line, sample.answer);
  const ids = concat(prompt.ids, answer);
  checkIds(ids, options.model);
  checkLength(ids.length, name, sample.line, options.model);
  const targets = new Int32Array(answer.length + 1);
  targets.set(answer);
  targets[answer.length] = endToken;
  return {
    line: sample.line,
    sequences: [{ ids, positions: after(prompt.ids.length, targets.length), targets }],
    promptTokens: prompt.ids.length,
    gold,
    ...(sample.keywords && { keywords: sample.keywords }),
  };
}

function encodeChoices(samples: readonly ChoicesSample[], name: string, options: EncodeOptions) {
  const parts = samples.map((sample) => {
    const prompt = encodePrompt(sample.prompt, options);
    const choices = sample.choices.map((choice) => {
      const ids = prompt.continueWith(options.chat ? choice.trimStart() : choice);
      if (ids.length === 0) throw noTokens(name, sample.line, choice);
      checkLength(prompt.ids.length + ids.length - 1, name, sample.line, options.model);
      checkIds(ids, options.model);
      return ids;
    });
    checkIds(prompt.ids, options.model);
    return { sample, prompt: prompt.ids, choices };
  });
  const readsLogits = parts.every(({ choices }) => choices.every(({ length }) => length === 1));
  const encoder = new TextEncoder();
  const encoded = parts.map(({ sample, prompt, choices }): EncodedSample => {
    const first = Int32Array.from(choices, (ids) => ids[0] as number);
    const right = sample.answer;
    // With one token per choice the model reads the prompt once; the target is only one of the tokens looked at.
    const sequences = readsLogits
      ? [{ ids: prompt, positions: after(prompt.length, 1), targets: first.slice(right, right + 1) }]
      : choices.map((ids) => ({
          ids: concat(prompt, ids.subarray(0, -1)),
          positions: after(prompt.length, ids.length),
          targets: ids,
        }));
    const bytes = sample.choices.map((choice) => encoder.encode(choice).length);
    return {
      line: sample.line,
      sequences,
      promptTokens: prompt.length,
      choices: { right, bytes, ...(readsLogits && { tokens: first }) },
    };
  });
  return { samples: encoded, readsLogits };
}

/** Positions from the last prompt token on. */
function after(promptTokens: number, count: number): Int32Array {
  return Int32Array.from({ length: count }, (_, i) => promptTokens - 1 + i);
}

function noTokens(name: string, line: number, text: string): CoppiceError {
  return new CoppiceError(
    "COPPICE_TASK_LINE",
    `${name}: line ${line} has the answer ${JSON.stringify(text.slice(0, 60))}, of which the tokenizer can express nothing`,
    { details: { name, line } },
  );
}
