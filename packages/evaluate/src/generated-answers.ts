import type { Plan, Runner } from "@coppice/core";
import { judgeAnswer, normalizeAnswer } from "./answer-text.js";
import { continueBatch } from "./continue-batch.js";
import { concat } from "./encode-prompt.js";
import type { EncodedSample, EncodedSequence, EncodedTask } from "./encode-task.js";
import type { Evidence } from "./evidence.js";
import { cacheAttention, type TextAttention } from "./limited-runner.js";
import type { Tokenizer } from "./tokenizer.js";

/**
 * Tokens that an answer may have beyond one per byte of the expected text. Every token that adds text adds at least
 * one byte, so what is longer is wrong already; these few leave room for special tokens and white space.
 */
const spareTokens = 8;

export interface AnswerRequest {
  readonly runner: Runner;
  readonly tokenizer: Tokenizer;
  readonly task: EncodedTask;
  readonly plan?: Plan | undefined;
  /** As in the forward pass that gave the evidence. */
  readonly attention?: TextAttention | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** A sample to be answered, with what is known of its answer already. */
export interface OpenAnswer {
  readonly sample: EncodedSample;
  /** First tokens of what greedy decoding gives. */
  readonly begun: readonly number[];
}

/**
 * Judges a sample from its forward pass alone, where that is possible.
 *
 * Greedy decoding writes the expected tokens up to the first place where another one is more likely, and that one
 * next. When the text then can no longer become the expected one, the answer is wrong whatever follows; when the
 * answer ended, it is compared. Else the text may still be spelt with other tokens, and only generation tells.
 */
export function judgeForced(
  { tokenizer, task }: Pick<AnswerRequest, "tokenizer" | "task">,
  sample: EncodedSample,
  evidence: Evidence,
): "right" | "wrong" | OpenAnswer {
  if (evidence.firstWrong === undefined) return "right";
  const begun = writtenTokens(sample, evidence);
  const verdict = judge(tokenizer, task, sample, begun);
  return verdict === "open" ? { sample, begun } : verdict;
}

/** The tokens that greedy decoding writes first, by the forward pass; the last one departs from the expected. */
export function writtenTokens(sample: EncodedSample, evidence: Evidence): number[] {
  const targets = sample.sequences[0]?.targets as Int32Array;
  const written = Array.from(targets.subarray(0, evidence.leadingRight));
  if (evidence.firstWrong !== undefined) written.push(evidence.firstWrong);
  return written;
}

/** Generates answers until each is right or wrong. An answer that does not end within its limit is wrong. */
export async function judgeByGeneration(
  request: AnswerRequest,
  open: readonly OpenAnswer[],
): Promise<boolean[]> {
  const { tokenizer, task } = request;
  const right = open.map(() => false);
  const encoder = new TextEncoder();
  await continueAnswers(
    request,
    open,
    ({ sample }) => encoder.encode(sample.gold ?? "").length + spareTokens,
    (i, tokens) => {
      const verdict = judge(tokenizer, task, (open[i] as OpenAnswer).sample, tokens);
      if (verdict === "right") right[i] = true;
      return verdict !== "open";
    },
  );
  return right;
}

/** Generates whole answers, in the form in which answers are compared. */
export async function generateAnswers(
  request: AnswerRequest,
  open: readonly OpenAnswer[],
): Promise<string[]> {
  const { tokenizer, task } = request;
  const texts = open.map(({ begun }) => textOf(tokenizer, task, begun));
  await continueAnswers(
    request,
    open,
    // Twice the expected length: beyond it precision is below one half and falling.
    ({ sample }) => 2 * (sample.sequences[0]?.targets.length ?? 0) + spareTokens,
    (i, tokens) => {
      texts[i] = textOf(tokenizer, task, tokens);
      return task.ending.has(tokens.at(-1) as number) || /[\n\r]/.test(texts[i] as string);
    },
  );
  return texts.map(normalizeAnswer);
}

async function continueAnswers(
  request: AnswerRequest,
  open: readonly OpenAnswer[],
  limit: (answer: OpenAnswer) => number,
  done: (i: number, tokens: readonly number[]) => boolean,
): Promise<void> {
  const { runner, plan, attention, signal } = request;
  // A masker chooses from the prompt alone what it sees, so answers under one are written from their begin, each by itself.
  const groups = attention?.masker ? open.map((_, i) => [i]) : open.length > 0 ? [[...open.keys()]] : [];
  for (const group of groups) {
    const answers = group.map((i) => open[i] as OpenAnswer);
    const begins = answers.map(({ begun }) => (attention?.masker ? [] : begun));
    const ids = answers.map(({ sample }) => (sample.sequences[0] as EncodedSequence).ids);
    await continueBatch(runner, {
      prompts: answers.map(({ sample }, i) =>
        concat((ids[i] as Int32Array).subarray(0, sample.promptTokens), begins[i] as readonly number[]),
      ),
      plan,
      // The length that plans are resolved at in the forward pass.
      ...(attention && {
        attention: (members) =>
          cacheAttention(
            attention,
            members.map((i) => ids[i]?.length ?? 0),
          ),
      }),
      maxTokens: answers.map((answer, i) => limit(answer) - (begins[i]?.length ?? 0)),
      done: (i, tokens) => done(group[i] as number, [...(begins[i] as readonly number[]), ...tokens]),
      signal,
    });
  }
}

function judge(tokenizer: Tokenizer, task: EncodedTask, sample: EncodedSample, tokens: readonly number[]) {
  const ended = task.endOfText.has(tokens.at(-1) as number);
  return judgeAnswer(textOf(tokenizer, task, tokens), ended, sample.gold ?? "");
}

/** Text of an answer; the end-of-text token has none even where the tokenizer does not call it special. */
function textOf(tokenizer: Tokenizer, task: EncodedTask, tokens: readonly number[]): string {
  const ended = task.endOfText.has(tokens.at(-1) as number);
  return tokenizer.decode(ended ? tokens.slice(0, -1) : tokens);
}
