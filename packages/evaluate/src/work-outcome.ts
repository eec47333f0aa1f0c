import {
  CoppiceError,
  errorCodes,
  type PlanScores,
  reviveError,
  type SerializedError,
  type WorkCounters,
} from "@coppice/core";
import { bytesToHex, hexToBytes } from "@noble/hashes/utils.js";
import type { TaskScore } from "./evaluate-task.js";
import { type Metric, metrics } from "./metrics.js";
import { type WorkRequest, workVersion } from "./work-request.js";

/** What a worker answers to a request. JSON; doubles travel as their bytes, so NaN and every bit survive. */
export interface WorkOutcome {
  readonly version: typeof workVersion;
  readonly id: string;
  /** Who worked: host and process. */
  readonly worker: string;
  /** Hash of logits of a fixed input: equal for workers whose arithmetic agrees to the last bit. */
  readonly numerics?: string;
  /** Scores per sample: little-endian float64 in hex. */
  readonly scores?: string;
  /** One 0 or 1 per sample. */
  readonly correct?: string;
  /** For a metric: its value and interval. */
  readonly metric?: { readonly name: string; readonly value: string };
  readonly error?: SerializedError;
  /** Work since the worker's last outcome. */
  readonly work: WorkCounters;
}

/** A checked outcome: scores, or the error of this plan. */
export interface ParsedOutcome {
  readonly worker: string;
  readonly numerics?: string;
  readonly result: PlanScores | TaskScore | CoppiceError;
  readonly work: WorkCounters;
}

/** Most samples of an outcome; a task has at most a million. */
const mostScores = 2_000_000;
/** Characters kept of an error's text from elsewhere. */
const mostText = 20_000;

export function encodeDoubles(values: ArrayLike<number>): string {
  const view = new DataView(new ArrayBuffer(8 * values.length));
  for (let i = 0; i < values.length; i++) view.setFloat64(8 * i, values[i] as number, true);
  return bytesToHex(new Uint8Array(view.buffer));
}

export function decodeDoubles(text: string): Float64Array {
  const bytes = hexToBytes(text);
  if (bytes.length % 8 !== 0) throw new RangeError(`${bytes.length} bytes are no doubles`);
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  return Float64Array.from({ length: bytes.length / 8 }, (_, i) => view.getFloat64(8 * i, true));
}

/** The part of an outcome that holds a result. */
export function encodeResult(
  result: PlanScores | TaskScore,
): Pick<WorkOutcome, "scores" | "correct" | "metric"> {
  const scores = encodeDoubles(result.scores);
  if ("metric" in result) {
    const { metric, value, low, high } = result;
    return { scores, metric: { name: metric, value: encodeDoubles([value, low, high]) } };
  }
  return { scores, ...(result.correct && { correct: result.correct.join("") }) };
}

/**
 * Reads an outcome that came from elsewhere, and checks that it answers `request`.
 * @throws COPPICE_EXECUTOR_RESULT
 */
export function parseOutcome(value: unknown, request: WorkRequest): ParsedOutcome {
  const outcome = (typeof value === "object" && value !== null ? value : {}) as Partial<WorkOutcome>;
  const { worker = "", numerics } = outcome;
  const refuse = (problem: string): never => {
    throw new CoppiceError(
      "COPPICE_EXECUTOR_RESULT",
      `the result from ${String(worker).slice(0, 100) || "a worker"} is not usable: ${problem}`,
      { details: { id: request.id } },
    );
  };
  if (outcome.version !== workVersion)
    return refuse(`its version is ${String(outcome.version)}, expected ${workVersion}`);
  if (outcome.id !== request.id)
    return refuse(`it answers ${String(outcome.id).slice(0, 64)}, asked was ${request.id}`);
  if (typeof worker !== "string" || (numerics !== undefined && typeof numerics !== "string")) {
    return refuse("it does not say who made it");
  }
  const common = {
    worker,
    ...(numerics !== undefined && { numerics }),
    work: counters(outcome.work) ?? refuse("it counts no work"),
  };
  if (outcome.error !== undefined)
    return { ...common, result: readError(outcome.error) ?? refuse("its error is none") };
  const { correct, metric } = outcome;
  const wantsMetric = "metric" in request.measure;
  if (typeof outcome.scores !== "string" || outcome.scores.length > 16 * mostScores)
    return refuse("it has no scores");
  if (wantsMetric !== (metric !== undefined)) return refuse("it is of another measure");
  try {
    const scores = decodeDoubles(outcome.scores);
    if (scores.length === 0) return refuse("it has no scores");
    if (metric !== undefined) {
      const [value = 0, low = 0, high = 0, ...more] = decodeDoubles(metric.value);
      if (!Object.hasOwn(metrics, metric.name) || more.length > 0) return refuse("its metric is none");
      const name = metric.name as Metric;
      return { ...common, result: { metric: name, value, low, high, samples: scores.length, scores } };
    }
    if (correct === undefined) return { ...common, result: { scores } };
    if (typeof correct !== "string" || correct.length !== scores.length || !/^[01]*$/.test(correct)) {
      return refuse("its answers are not one digit per sample");
    }
    return { ...common, result: { scores, correct: Uint8Array.from(correct, Number) } };
  } catch (error) {
    if (error instanceof CoppiceError) throw error;
    return refuse(`its scores cannot be read: ${error instanceof Error ? error.message : String(error)}`);
  }
}

function counters(work: Partial<WorkCounters> | undefined): WorkCounters | undefined {
  const { tokenLayers, avoidedTokenLayers, expertTokens, avoidedExpertTokens } = work ?? {};
  const count = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0;
  return count(tokenLayers) && count(avoidedTokenLayers) && count(expertTokens) && count(avoidedExpertTokens)
    ? { tokenLayers, avoidedTokenLayers, expertTokens, avoidedExpertTokens }
    : undefined;
}

function readError(error: Partial<SerializedError>): CoppiceError | undefined {
  const { code, message, hint, retryable } = error;
  if (typeof code !== "string" || !Object.hasOwn(errorCodes, code) || typeof message !== "string")
    return undefined;
  return reviveError({
    code,
    message: message.slice(0, mostText),
    details: typeof error.details === "object" && error.details !== null ? error.details : {},
    retryable: retryable === true,
    ...(typeof hint === "string" && { hint: hint.slice(0, mostText) }),
  });
}
