import { CoppiceError, type Plan, type SerializedError } from "@coppice/core";
import { partSamples } from "./race.js";

interface PlanRecord {
  /** Which sample set: "search" for the search itself; results of different scopes never mix. */
  readonly scope: string;
  readonly key: string;
  /** Canonical plan, for people; left out when it is long, since a resumed run makes it again. */
  readonly plan?: Plan;
  readonly phase?: string;
  readonly origin?: string;
}

/** A plan that was evaluated, with everything that a resumed run needs of it. */
export interface EvaluatedRecord extends PlanRecord {
  readonly type: "evaluated";
  /** Fitness per sample; JSON numbers of JavaScript read back as the very same doubles. */
  readonly scores: readonly number[];
  /** One "0" or "1" per sample, where the task has right answers. */
  readonly correct?: string;
  /** Present when a race ended early: the samples are those of the first `known` of `parts` parts of `samples`. */
  readonly race?: { readonly known: number; readonly parts: number; readonly samples: number };
}

/** A plan that could not be evaluated; a resumed run does not try it again. */
export interface FailedRecord extends PlanRecord {
  readonly type: "failed";
  readonly error: SerializedError;
}

/** A record of another type: skipped by the engine, free for the application (JSON values only). */
export interface OtherRecord {
  readonly type: string;
  readonly [key: string]: unknown;
}

export type JournalRecord = EvaluatedRecord | FailedRecord | OtherRecord;

/** What a run remembers across processes. `openRunFolder` of `@coppice/search/node` keeps one in a file. */
export interface RunJournal {
  /** Records of earlier processes and of this one, in the order they were appended. */
  readonly records: readonly JournalRecord[];
  /** Resolves when the records would survive a kill of the process and of the machine. */
  append(records: readonly JournalRecord[]): Promise<void>;
}

/** A journal in memory, for tests and for runs that need not be resumed. */
export function memoryJournal(records: readonly JournalRecord[] = []): RunJournal {
  const kept = [...records];
  return {
    records: kept,
    async append(more) {
      kept.push(...more);
    },
  };
}

/** The evaluation records among `records` that belong to `scope`. @throws COPPICE_RUN_JOURNAL for a malformed one */
export function evaluationRecords(
  records: readonly JournalRecord[],
  scope: string,
): (EvaluatedRecord | FailedRecord)[] {
  const found: (EvaluatedRecord | FailedRecord)[] = [];
  records.forEach((record, index) => {
    if ((record.type !== "evaluated" && record.type !== "failed") || record.scope !== scope) return;
    const problem = problemOf({ ...record });
    if (problem !== undefined) {
      throw new CoppiceError(
        "COPPICE_RUN_JOURNAL",
        `record ${index} of the journal, of type "${record.type}", is malformed: ${problem}`,
        { hint: "start again in a new run folder", details: { record: index } },
      );
    }
    found.push(record as EvaluatedRecord | FailedRecord);
  });
  return found;
}

function problemOf(record: Readonly<Record<string, unknown>>): string | undefined {
  if (typeof record.key !== "string" || record.key === "") return "it has no key";
  if (record.type === "failed") {
    const error = record.error as { code?: unknown; message?: unknown } | undefined;
    const usable = typeof error?.code === "string" && typeof error.message === "string";
    return usable ? undefined : "its error has no code and message";
  }
  const { scores, correct, race } = record;
  if (!Array.isArray(scores) || scores.length === 0 || !scores.every(Number.isFinite)) {
    return "scores is not a list of numbers";
  }
  if (race !== undefined && !isRace(race, scores.length)) return "race does not fit its scores";
  if (correct === undefined) return undefined;
  const usable = typeof correct === "string" && correct.length === scores.length && /^[01]*$/.test(correct);
  return usable ? undefined : `correct is not a text of ${scores.length} digits 0 or 1`;
}

function isRace(value: unknown, scores: number): boolean {
  const { known, parts, samples } = (value ?? {}) as Record<string, unknown>;
  if (![known, parts, samples].every(Number.isSafeInteger)) return false;
  const [first, count, all] = [known, parts, samples] as [number, number, number];
  // Bounded before anything is made of that size.
  if (first < 1 || first >= count || all > (scores + 1) * count) return false;
  return partSamples(all, count, 0, first).length === scores;
}
