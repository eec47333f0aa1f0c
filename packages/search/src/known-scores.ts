import { CoppiceError, isCoppiceError, type Plan, type PlanScores, reviveError } from "@coppice/core";
import type { Evaluation, EvaluationRequest } from "./evaluator.js";
import type { EvaluatedRecord, FailedRecord } from "./journal.js";
import { lostAfter, partSamples } from "./race.js";

/** What is remembered of a plan on one sample set. */
export interface Known {
  /** [samples]; those of parts that are not known have no meaning. Empty when the plan failed. */
  readonly scores: Float64Array;
  /** [samples], 1 where a sample is answered right. */
  readonly correct?: Uint8Array;
  readonly error?: CoppiceError;
  /** Present while only the first `known` of `parts` parts are known. */
  readonly partial?: { readonly known: number; readonly parts: number };
}

/** What a candidate must beat: a plan that is known on all samples. */
export interface Rival {
  readonly scores: Float64Array;
  readonly parts: number;
}

/** A plan that is being evaluated. */
export interface Job {
  readonly request: EvaluationRequest;
  /** Canonical. */
  readonly plan: Plan;
  rival: Rival | undefined;
  known: Known | undefined;
}

export function isPartial({ partial }: Known): boolean {
  return partial !== undefined;
}

/** True when nothing more has to be evaluated. */
export function isSettled({ known, rival }: Job): boolean {
  return known !== undefined && (!isPartial(known) || lossOf(known, rival) !== undefined);
}

/** Parts after which a plan has lost its race, however many more of it are known; undefined when it has not. */
function lossOf({ scores, error, partial }: Known, rival: Rival | undefined): number | undefined {
  if (error || !rival) return undefined;
  return lostAfter({ scores, rival: rival.scores, parts: rival.parts, known: partial?.known ?? rival.parts });
}

/**
 * What is known, and new scores: of all samples, or of the next part. A score that is not finite makes the plan fail.
 * @throws COPPICE_INTERNAL when the executor returned another number of scores than it was asked for
 */
export function withScores(
  before: Known | undefined,
  result: PlanScores | CoppiceError,
  place: { readonly part: number; readonly parts: number; readonly samples: number } | undefined,
): Known {
  if (isCoppiceError(result)) return { scores: new Float64Array(0), error: result };
  const { scores, correct } = result;
  const owners = place && partSamples(place.samples, place.parts, place.part, place.part + 1);
  const expected = owners?.length ?? Math.max(1, scores.length);
  if (scores.length !== expected || (correct && correct.length !== scores.length)) {
    throw new CoppiceError(
      "COPPICE_INTERNAL",
      `the executor returned ${scores.length} scores and ${correct?.length ?? "no"} answers for one plan, ` +
        `expected ${expected}`,
    );
  }
  const bad = scores.findIndex((score) => !Number.isFinite(score));
  if (bad >= 0) {
    const message = `sample ${owners?.[bad] ?? bad} scored ${scores[bad]}, expected a finite number`;
    return { scores: new Float64Array(0), error: new CoppiceError("COPPICE_BACKEND_FAILED", message) };
  }
  if (!place || !owners) {
    return { scores: Float64Array.from(scores), ...(correct && { correct: Uint8Array.from(correct) }) };
  }
  const { part, parts, samples } = place;
  const all = before?.scores.slice() ?? new Float64Array(samples);
  const right = correct && (before?.correct?.slice() ?? new Uint8Array(samples));
  owners.forEach((sample, i) => {
    all[sample] = scores[i] as number;
    if (right) right[sample] = correct[i] as number;
  });
  return {
    scores: all,
    ...(right && { correct: right }),
    ...(part + 1 < parts && { partial: { known: part + 1, parts } }),
  };
}

/** The result of a plan that is settled. */
export function evaluationOf(key: string, { plan, known, rival }: Job): Evaluation {
  const { scores, correct, error } = known as Known;
  if (error) return { key, plan, fitness: Number.NEGATIVE_INFINITY, scores: new Float64Array(0), error };
  const lost = lossOf(known as Known, rival);
  if (lost === undefined || !rival) {
    return {
      key,
      plan,
      fitness: mean(scores),
      scores: scores.slice(),
      ...(correct && { correct: correct.slice(), accuracy: mean(correct) }),
    };
  }
  const samples = partSamples(scores.length, rival.parts, 0, lost);
  const difference = samples.map((i) => (scores[i] as number) - (rival.scores[i] as number));
  return {
    key,
    plan,
    fitness: mean(rival.scores) + mean(difference),
    scores: new Float64Array(0),
    samples: samples.length,
  };
}

function mean(values: ArrayLike<number>): number {
  let sum = 0;
  for (let i = 0; i < values.length; i++) sum += values[i] as number;
  return sum / values.length;
}

/**
 * Longest plan, in characters of JSON, that is written to the journal: any subset fits, while merge matrices of a
 * model with thousands of experts take megabytes per plan.
 */
const longestPlan = 2 ** 16;

export function fromRecord(record: EvaluatedRecord | FailedRecord): Known {
  if (record.type === "failed") return { scores: new Float64Array(0), error: reviveError(record.error) };
  const { race, scores, correct } = record;
  const samples = race?.samples ?? scores.length;
  const places = race ? partSamples(samples, race.parts, 0, race.known) : [...scores.keys()];
  const all = new Float64Array(samples);
  const right = correct === undefined ? undefined : new Uint8Array(samples);
  places.forEach((sample, i) => {
    all[sample] = scores[i] as number;
    if (right) right[sample] = Number(correct?.[i]);
  });
  return {
    scores: all,
    ...(right && { correct: right }),
    ...(race && { partial: { known: race.known, parts: race.parts } }),
  };
}

export function toRecord(
  scope: string,
  key: string,
  { scores, correct, error, partial }: Known,
  { plan, phase, origin }: EvaluationRequest,
): EvaluatedRecord | FailedRecord {
  const common = {
    scope,
    key,
    ...(JSON.stringify(plan).length <= longestPlan && { plan }),
    ...(phase !== undefined && { phase }),
    ...(origin !== undefined && { origin }),
  };
  if (error) return { type: "failed", ...common, error: error.toJSON() };
  const samples = scores.length;
  const places = partial ? partSamples(samples, partial.parts, 0, partial.known) : [...scores.keys()];
  return {
    type: "evaluated",
    ...common,
    scores: places.map((sample) => scores[sample] as number),
    ...(correct && { correct: places.map((sample) => correct[sample]).join("") }),
    ...(partial && { race: { ...partial, samples } }),
  };
}
