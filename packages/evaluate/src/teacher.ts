import { CoppiceError } from "@coppice/core";
import type { RunnerPart } from "./counting-runner.js";
import type { EncodedSequence, EncodedTask } from "./encode-task.js";
import { type Evidence, logSumExp, runBatch } from "./evidence.js";
import type { MicroBatch } from "./micro-batch.js";

/** What the whole model expects at the positions of a sequence: its most likely tokens. */
export interface SequenceTeacher {
  /** Tokens per position, k. */
  readonly kept: number;
  /** [positions, k], most likely first. */
  readonly tokens: Int32Array;
  /** [positions, k], log-probabilities. */
  readonly logProbs: Float32Array;
}

/** What the whole model makes of a batch. */
export interface BatchTeacher {
  /** One per sequence; empty for choices, which are compared as wholes. */
  readonly sequences: readonly SequenceTeacher[];
  /** Log-likelihood of every choice, per sample; empty for other forms. */
  readonly choices: readonly Float64Array[];
}

/**
 * Tokens of a position that are told apart; the others count as one. Where a model knows what comes next, one of them
 * has most of the probability, and elsewhere what is merged makes the divergence smaller, never larger.
 */
const keptTokens = 32;
/** Logits that are held at once: 64 MB. */
const chunkValues = 16 * 1024 * 1024;

/** Runs the whole model over a batch. */
export async function teachBatch(
  runner: RunnerPart,
  task: EncodedTask,
  batch: MicroBatch,
  signal: AbortSignal | undefined,
): Promise<BatchTeacher> {
  if (task.form === "choices") {
    const { evidence } = await runBatch(runner, task, batch, { signal });
    return { sequences: [], choices: evidence.map(({ choices }) => choices as Float64Array) };
  }
  const { vocabSize } = runner.model;
  const rowsAtOnce = Math.max(1, Math.floor(chunkValues / vocabSize));
  const sequences: SequenceTeacher[] = [];
  for (const sequence of batch.sequences) sequences.push(await teach(runner, sequence, rowsAtOnce, signal));
  return { sequences, choices: [] };
}

async function teach(
  runner: RunnerPart,
  { ids, positions }: EncodedSequence,
  rowsAtOnce: number,
  signal: AbortSignal | undefined,
): Promise<SequenceTeacher> {
  const { vocabSize } = runner.model;
  const kept = Math.min(keptTokens, vocabSize);
  const tokens = new Int32Array(positions.length * kept);
  const logProbs = new Float32Array(positions.length * kept);
  for (let begin = 0; begin < positions.length; begin += rowsAtOnce) {
    const part = positions.subarray(begin, begin + rowsAtOnce);
    const { logits } = await runner.run({ sequences: [ids], positions: [part], ...(signal && { signal }) });
    if (!logits) {
      throw new CoppiceError(
        "COPPICE_BACKEND_FAILED",
        "the backend returned no logits, which were asked for",
      );
    }
    for (let row = 0; row < part.length; row++) {
      const values = logits.subarray(row * vocabSize, (row + 1) * vocabSize);
      const at = (begin + row) * kept;
      mostLikely(values, tokens.subarray(at, at + kept));
      const total = logSumExp(values);
      for (let i = at; i < at + kept; i++) logProbs[i] = (values[tokens[i] as number] as number) - total;
    }
  }
  return { kept, tokens, logProbs };
}

/** The indices of the largest values, largest first, ties to the lower index. */
function mostLikely(values: Float32Array, out: Int32Array): void {
  let filled = 0;
  for (let i = 0; i < values.length; i++) {
    const value = values[i] as number;
    if (filled === out.length && !(value > (values[out[filled - 1] as number] as number))) continue;
    let at = filled < out.length ? filled++ : filled - 1;
    for (; at > 0 && value > (values[out[at - 1] as number] as number); at--) out[at] = out[at - 1] as number;
    out[at] = i;
  }
}

/**
 * KL(teacher || model) in nats at each position, summed, over the teacher's tokens and all others as one.
 * @param logProbs [positions, k], the model's log-probabilities of the teacher's tokens
 */
export function divergenceFrom(teacher: SequenceTeacher, logProbs: Float32Array): number {
  const { kept } = teacher;
  let sum = 0;
  for (let at = 0; at < logProbs.length; at += kept) {
    let [rest, modelRest] = [1, 1];
    for (let i = at; i < at + kept; i++) {
      const [p, q] = [Math.exp(teacher.logProbs[i] as number), Math.exp(logProbs[i] as number)];
      rest -= p;
      modelRest -= q;
      if (p > 0) sum += p * ((teacher.logProbs[i] as number) - (logProbs[i] as number));
    }
    // Differences of sums near 1: below this they are rounding.
    if (rest > 1e-6) sum += rest * Math.log(rest / Math.max(modelRest, 1e-6));
  }
  return Math.max(0, sum);
}

/** KL between the distributions over the choices that log-likelihoods give. */
export function choiceDivergence(teacher: Float64Array, { choices }: Evidence): number {
  const model = choices as Float64Array;
  const [total, modelTotal] = [logSumExp(teacher), logSumExp(model)];
  return teacher.reduce((sum, value, i) => {
    const log = value - total;
    return sum + Math.exp(log) * (log - ((model[i] as number) - modelTotal));
  }, 0);
}
