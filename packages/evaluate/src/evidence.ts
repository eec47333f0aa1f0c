import { CoppiceError, type HeldBoundary, type LayerMemory, type Plan, type RunResult } from "@coppice/core";
import type { RunnerPart } from "./counting-runner.js";
import type { EncodedSample, EncodedSequence, EncodedTask } from "./encode-task.js";
import type { MicroBatch } from "./micro-batch.js";
import { type BatchTeacher, choiceDivergence, divergenceFrom, type SequenceTeacher } from "./teacher.js";

/** What one forward pass says about a sample. */
export interface Evidence {
  /** Sum of the log-probabilities of all expected tokens, the end of the answer included; choices: of the right one. */
  readonly logLikelihood: number;
  /** Number of those tokens. */
  readonly tokens: number;
  /**
   * Generation: expected tokens before the first that is not the most likely one; equal to `tokens` when the model
   * would write the expected tokens and then end. Any ending token will do for the end.
   */
  readonly leadingRight: number;
  /** Generation: the most likely token there, when `leadingRight` is below `tokens`. */
  readonly firstWrong?: number;
  /** Choices: log-likelihood of every choice, the sum over its tokens, and which one is right. */
  readonly choices?: Float64Array;
  readonly rightChoice?: number;
  /** KL from the whole model, summed over the positions (`divergenceFrom`), where a teacher was given. */
  readonly divergence?: number;
}

/** Activations at a layer boundary: values, or what a runner holds. */
export type Boundary = Float32Array | HeldBoundary;

export interface BatchRun {
  readonly plan?: Plan | undefined;
  readonly from?: number;
  readonly hidden?: Boundary | undefined;
  readonly boundaries?: readonly number[];
  /** Whether the runner has a `pace`: it holds boundaries, and probabilities of choices are read instead of all logits. */
  readonly paced?: boolean;
  /** Of layer `from`. */
  readonly memory?: LayerMemory | undefined;
  /** What the whole model makes of the batch, to compare with. */
  readonly teacher?: BatchTeacher | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** Runs one batch with everything its samples expect given (teacher forcing). */
export async function runBatch(
  runner: RunnerPart,
  task: EncodedTask,
  batch: MicroBatch,
  run: BatchRun,
): Promise<{ result: RunResult; evidence: Evidence[] }> {
  const { plan, from = 0, hidden, boundaries = [], paced = false, memory, teacher, signal } = run;
  const readsLogits = task.readsLogits && !paced;
  const asked = task.readsLogits && paced ? askedChoices(task, batch) : askedOfBatch(task, batch, teacher);
  const result = await runner.run({
    sequences: batch.sequences.map(({ ids }) => ids),
    positions: asked.map(({ positions }) => positions),
    ...(!readsLogits && { targets: asked.map(({ targets }) => targets) }),
    ...(plan && { plan }),
    ...(from > 0 && hidden && { from, ...(hidden instanceof Float32Array ? { hidden } : { held: hidden }) }),
    ...(boundaries.length > 0 && (paced ? { hold: boundaries } : { boundaries })),
    ...(memory && { memory }),
    ...(signal && { signal }),
  });
  if (!teacher) return { result, evidence: readEvidence(runner.model.vocabSize, task, batch, result) };
  const { expected, divergences } =
    teacher.sequences.length > 0 ? compare(teacher, asked, result) : { expected: result };
  const evidence = readEvidence(runner.model.vocabSize, task, batch, expected ?? result);
  return {
    result,
    evidence: evidence.map((found, i) => ({
      ...found,
      // Without choices a sample is one sequence.
      divergence: divergences?.[i] ?? choiceDivergence(teacher.choices[i] as Float64Array, found),
    })),
  };
}

/** The positions of a sequence with what is asked there: the expected token, other ends, the teacher's tokens. */
interface Asked {
  readonly positions: Int32Array;
  readonly targets: Int32Array;
  /** Tokens of the teacher per position, the last of those asked there. */
  readonly taught: number;
}

/** All choices at the end of every prompt. */
function askedChoices(task: EncodedTask, batch: MicroBatch): readonly Asked[] {
  return batch.samples.flatMap((index) => {
    const { sequences, choices } = task.samples[index] as EncodedSample;
    const targets = choices?.tokens ?? new Int32Array();
    return sequences.map(({ positions }) => ({
      positions: new Int32Array(targets.length).fill(positions[0] as number),
      targets,
      taught: 0,
    }));
  });
}

/** By teacher, or by batch where there is none: a search asks the same of every plan. */
const askedBefore = new WeakMap<BatchTeacher | MicroBatch, readonly Asked[]>();

function askedOfBatch(
  task: EncodedTask,
  batch: MicroBatch,
  teacher: BatchTeacher | undefined,
): readonly Asked[] {
  const known = askedBefore.get(teacher ?? batch);
  if (known) return known;
  const ends = moreEnds(task);
  const asked = batch.sequences.map((sequence, i) => askedOf(sequence, ends, teacher?.sequences[i]));
  askedBefore.set(teacher ?? batch, asked);
  return asked;
}

function askedOf(
  { positions, targets }: EncodedSequence,
  ends: readonly number[],
  teacher: SequenceTeacher | undefined,
): Asked {
  const taught = teacher?.kept ?? 0;
  if (taught === 0 && ends.length === 0) return { positions, targets, taught };
  const at: number[] = [];
  const wanted: number[] = [];
  for (const [i, position] of positions.entries()) {
    const more = i + 1 === positions.length ? ends : [];
    wanted.push(targets[i] as number, ...more);
    if (teacher) wanted.push(...teacher.tokens.subarray(i * taught, (i + 1) * taught));
    while (at.length < wanted.length) at.push(position);
  }
  return { positions: Int32Array.from(at), targets: Int32Array.from(wanted), taught };
}

/** Takes the rows of the teacher's tokens out of a result: what is left is what a run without a teacher gives. */
function compare(teacher: BatchTeacher, asked: readonly Asked[], result: RunResult) {
  const logProbs = wanted(result.targetLogProbs, "targetLogProbs");
  const argmax = wanted(result.argmax, "argmax");
  const keptRows: number[] = [];
  let row = 0;
  const divergences = asked.map(({ positions, taught }, s) => {
    const rows: number[] = [];
    for (let i = 0; i < positions.length; ) {
      let end = i;
      while (end < positions.length && positions[end] === positions[i]) end++;
      for (; i < end; i++) (i < end - taught ? keptRows : rows).push(row + i);
    }
    row += positions.length;
    const taughtProbs = Float32Array.from(rows, (at) => logProbs[at] as number);
    return divergenceFrom(teacher.sequences[s] as SequenceTeacher, taughtProbs);
  });
  const expected: RunResult = {
    ...result,
    targetLogProbs: Float32Array.from(keptRows, (at) => logProbs[at] as number),
    argmax: Int32Array.from(keptRows, (at) => argmax[at] as number),
  };
  return { expected, divergences };
}

/** Targets of the last position of an answer besides the first. */
function moreEnds(task: EncodedTask): readonly number[] {
  return task.form === "generation" ? task.endTokens.slice(1) : [];
}

function readEvidence(
  vocabSize: number,
  task: EncodedTask,
  batch: MicroBatch,
  result: RunResult,
): Evidence[] {
  const ends = moreEnds(task).length;
  let row = 0;
  return batch.samples.map((index) => {
    const sample = task.samples[index] as EncodedSample;
    const begin = row;
    const choices = result.logits ? undefined : sample.choices?.tokens;
    if (choices) {
      row += choices.length;
      return choiceEvidence(sample, result, begin, vocabSize);
    }
    for (const { positions } of sample.sequences) row += positions.length + ends;
    if (sample.choices) return choiceEvidence(sample, result, begin, vocabSize);
    const logProbs = wanted(result.targetLogProbs, "targetLogProbs").subarray(begin, row);
    const argmax = wanted(result.argmax, "argmax").subarray(begin, row);
    const tokens = row - begin - ends;
    // For text the last row is a row like all others: one target, of which this is the value itself.
    const last = logSumExp(logProbs.subarray(tokens - 1));
    const logLikelihood = sum(logProbs.subarray(0, tokens - 1)) + last;
    if (task.form === "text") return { logLikelihood, tokens, leadingRight: 0 };
    const targets = sample.sequences[0]?.targets as Int32Array;
    let right = 0;
    while (right < tokens - 1 && argmax[right] === targets[right]) right++;
    const token = argmax[right] as number;
    // Only the last row may be answered by any token that ends the answer.
    if (right === tokens - 1 && task.ending.has(token)) right++;
    return { logLikelihood, tokens, leadingRight: right, ...(right < tokens && { firstWrong: token }) };
  });
}

function choiceEvidence(
  sample: EncodedSample,
  result: RunResult,
  begin: number,
  vocabSize: number,
): Evidence {
  const { right, tokens } = sample.choices as NonNullable<EncodedSample["choices"]>;
  let choices: Float64Array;
  if (tokens && !result.logits) {
    const own = wanted(result.targetLogProbs, "targetLogProbs").subarray(begin, begin + tokens.length);
    choices = Float64Array.from(own);
  } else if (tokens) {
    const logits = wanted(result.logits, "logits").subarray(begin * vocabSize, (begin + 1) * vocabSize);
    const normalizer = logSumExp(logits);
    choices = Float64Array.from(tokens, (token) => (logits[token] as number) - normalizer);
  } else {
    const logProbs = wanted(result.targetLogProbs, "targetLogProbs");
    let row = begin;
    choices = Float64Array.from(sample.sequences, ({ positions }) => {
      row += positions.length;
      return sum(logProbs.subarray(row - positions.length, row));
    });
  }
  return {
    logLikelihood: choices[right] as number,
    tokens: sample.sequences[tokens ? 0 : right]?.positions.length as number,
    leadingRight: 0,
    choices,
    rightChoice: right,
  };
}

/** log(sum(exp(values))) without overflow. */
export function logSumExp(values: ArrayLike<number>): number {
  let max = Number.NEGATIVE_INFINITY;
  for (let i = 0; i < values.length; i++) max = Math.max(max, values[i] as number);
  if (!Number.isFinite(max)) return max;
  let total = 0;
  for (let i = 0; i < values.length; i++) total += Math.exp((values[i] as number) - max);
  return max + Math.log(total);
}

/** Index of the largest value; ties go to the lower index. */
export function indexOfMax(values: ArrayLike<number>): number {
  let best = 0;
  for (let i = 1; i < values.length; i++) if ((values[i] as number) > (values[best] as number)) best = i;
  return best;
}

function sum(values: Float32Array): number {
  let total = 0;
  for (const value of values) total += value;
  return total;
}

function wanted<T>(value: T | undefined, field: string): T {
  if (value !== undefined) return value;
  throw new CoppiceError("COPPICE_BACKEND_FAILED", `the backend returned no ${field}, which were asked for`);
}
