import {
  type MoeModel,
  type Plan,
  type RunEmitter,
  type Runner,
  startProgress,
  throwIfAborted,
} from "@coppice/core";
import { type EncodedSample, type EncodedTask, encodeTask } from "./encode-task.js";
import { type Evidence, indexOfMax, runBatch } from "./evidence.js";
import { f1Score } from "./f1.js";
import {
  type AnswerRequest,
  generateAnswers,
  judgeByGeneration,
  judgeForced,
  type OpenAnswer,
  writtenTokens,
} from "./generated-answers.js";
import type { BootstrapOptions } from "./intervals.js";
import { keywordScore } from "./keyword-score.js";
import { klDivergences } from "./kl.js";
import { limitedRunner, type TextAttention } from "./limited-runner.js";
import { defaultMetric, type Metric, parseMetric, type SampleScores, summarize } from "./metrics.js";
import { type MicroBatch, microBatches } from "./micro-batch.js";
import type { Task } from "./task.js";
import type { Tokenizer } from "./tokenizer.js";

export interface TaskScore {
  readonly metric: Metric;
  readonly value: number;
  /** Ends of the 95 % interval of `value`. */
  readonly low: number;
  readonly high: number;
  /** Number of samples. */
  readonly samples: number;
  /** Per sample, in task order; for perplexity the mean log-probability per token. */
  readonly scores: Float64Array;
}

export interface ScoreSamplesOptions {
  readonly runner: Runner;
  readonly tokenizer: Tokenizer;
  readonly task: EncodedTask;
  readonly metric: Metric;
  /** Default: the model as it is. */
  readonly plan?: Plan | undefined;
  /** Default: as the model is. */
  readonly attention?: TextAttention | undefined;
  /** Some of `microBatches(task, runner.pace)`. Default: all. */
  readonly batches?: readonly MicroBatch[];
  readonly signal?: AbortSignal | undefined;
  /** Called after each batch with the number of its samples. */
  readonly onSamples?: (count: number) => void;
}

/** Scores samples, batch by batch; the metric must fit the form. */
export async function scoreSamples(options: ScoreSamplesOptions): Promise<SampleScores> {
  const { task, signal, onSamples } = options;
  const samples: number[] = [];
  const scores: number[] = [];
  const tokens: number[] = [];
  for (const batch of options.batches ?? microBatches(task, options.runner.pace)) {
    throwIfAborted(signal, "evaluating a task");
    samples.push(...batch.samples);
    scores.push(...(await scoreBatch(options, batch)));
    for (const index of batch.samples) tokens.push(expectedTokens(task.samples[index] as EncodedSample));
    onSamples?.(batch.samples.length);
  }
  return { samples, scores, tokens };
}

async function scoreBatch(options: ScoreSamplesOptions, batch: MicroBatch): Promise<number[]> {
  const { runner, task, metric, plan, attention, signal } = options;
  const samples = batch.samples.map((index) => task.samples[index] as EncodedSample);
  const limited = limitedRunner(runner, attention, task);
  if (metric === "kl") {
    if (!plan && !attention) return samples.map(() => 0);
    const compared = { full: runner, changed: limited, resumes: !attention?.masker };
    return klDivergences(compared, task, batch, plan, signal);
  }
  const { evidence } = await runBatch(limited, task, batch, { plan, signal });
  switch (metric) {
    case "exact-match":
      return exactMatch(options, samples, evidence);
    case "f1":
      return textScores(options, samples, evidence, (text, { gold = "" }) => f1Score(text, gold));
    case "keyword-score":
      return textScores(options, samples, evidence, (text, { gold = "", keywords }) =>
        keywordScore(text, gold, keywords),
      );
    case "exact-match-tokens":
      return evidence.map(({ leadingRight, tokens }) => Number(leadingRight === tokens));
    case "choice-accuracy":
      return evidence.map(({ choices = [], rightChoice }) => Number(indexOfMax(choices) === rightChoice));
    case "choice-accuracy-per-byte":
      return evidence.map(({ choices = [], rightChoice }, i) => {
        const { bytes = [] } = samples[i]?.choices ?? {};
        const perByte = Array.from(choices, (value, choice) => value / (bytes[choice] as number));
        return Number(indexOfMax(perByte) === rightChoice);
      });
    case "log-likelihood":
    case "perplexity":
      return evidence.map(({ logLikelihood, tokens }) => logLikelihood / tokens);
    default:
      return metric satisfies never;
  }
}

async function exactMatch(
  request: AnswerRequest,
  samples: readonly EncodedSample[],
  evidence: readonly Evidence[],
): Promise<number[]> {
  const judged = samples.map((sample, i) => judgeForced(request, sample, evidence[i] as Evidence));
  const open = judged.filter((verdict): verdict is OpenAnswer => typeof verdict === "object");
  const generated = await judgeByGeneration(request, open);
  return judged.map((verdict) =>
    typeof verdict === "object" ? Number(generated[open.indexOf(verdict)]) : Number(verdict === "right"),
  );
}

/** Scores what is written, in the form in which answers are compared; an answer in exactly the expected tokens scores 1. */
async function textScores(
  request: AnswerRequest,
  samples: readonly EncodedSample[],
  evidence: readonly Evidence[],
  score: (text: string, sample: EncodedSample) => number,
): Promise<number[]> {
  const open: OpenAnswer[] = [];
  const places: number[] = [];
  samples.forEach((sample, i) => {
    const seen = evidence[i] as Evidence;
    if (seen.firstWrong === undefined) return;
    open.push({ sample, begun: writtenTokens(sample, seen) });
    places.push(i);
  });
  const texts = await generateAnswers(request, open);
  const scores = samples.map(() => 1);
  places.forEach((i, at) => {
    scores[i] = score(texts[at] as string, samples[i] as EncodedSample);
  });
  return scores;
}

function expectedTokens({ sequences, choices }: EncodedSample): number {
  return sequences[choices && sequences.length > 1 ? choices.right : 0]?.targets.length ?? 0;
}

/**
 * Puts scores of several shards together, in task order, with value and interval.
 * @param samples number of samples of the task
 */
export function combineScores(
  metric: Metric,
  samples: number,
  shards: readonly SampleScores[],
  options: BootstrapOptions = {},
): TaskScore {
  const scores = new Float64Array(samples);
  const tokens = new Float64Array(samples);
  for (const shard of shards) {
    shard.samples.forEach((sample, i) => {
      scores[sample] = shard.scores[i] as number;
      tokens[sample] = shard.tokens[i] as number;
    });
  }
  return { metric, ...summarize(metric, scores, tokens, options), samples, scores };
}

export interface EvaluateTaskOptions {
  /** Not disposed. */
  readonly runner: Runner;
  readonly tokenizer: Tokenizer;
  readonly task: Task;
  /** Default: exact match, choice accuracy or perplexity, by the form of the task. */
  readonly metric?: string;
  /** Default: the model as it is. */
  readonly plan?: Plan;
  /** What attention is limited to, the same in forward passes and where answers are generated. Default: as the model is. */
  readonly attention?: TextAttention;
  /** First samples only; for text, first windows. */
  readonly limit?: number;
  /** Prompts in the checkpoint's chat template; see `encodeTask`. */
  readonly chat?: boolean;
  readonly signal?: AbortSignal;
  /** Gets `progress` after every batch. */
  readonly emitter?: RunEmitter;
}

/**
 * Measures a metric on a task.
 * @throws COPPICE_TASK_METRIC, COPPICE_TASK_TOO_LONG, COPPICE_ABORTED, and what the runner throws
 */
export async function evaluateTask(options: EvaluateTaskOptions): Promise<TaskScore> {
  const { runner, tokenizer, plan, attention, signal, emitter } = options;
  const { task, metric } = prepareTask(runner.model, options);
  const total = task.samples.length;
  let done = 0;
  const tell = startProgress(emitter, "evaluating", "samples");
  const shard = await scoreSamples({
    runner,
    tokenizer,
    task,
    metric,
    plan,
    attention,
    signal,
    onSamples: (count) => {
      done += count;
      tell(done, total);
    },
  });
  return combineScores(metric, total, [shard]);
}

/** Chooses the metric and encodes the task, refusing what does not fit before any work. */
export function prepareTask(
  model: MoeModel,
  options: Pick<EvaluateTaskOptions, "task" | "tokenizer" | "metric" | "limit" | "chat">,
): { task: EncodedTask; metric: Metric } {
  const { tokenizer, limit, chat } = options;
  const { form } = options.task;
  const metric = options.metric === undefined ? defaultMetric(form) : parseMetric(options.metric, form);
  const task = encodeTask(options.task, {
    tokenizer,
    model,
    ...(limit !== undefined && { limit }),
    ...(chat !== undefined && { chat }),
  });
  return { task, metric };
}
