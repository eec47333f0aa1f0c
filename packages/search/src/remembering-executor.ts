import {
  CoppiceError,
  type Executor,
  type MoeModel,
  type Plan,
  type PlanScores,
  planKey,
  type RunEmitter,
  raceParts,
} from "@coppice/core";
import { partSamples } from "./race.js";
import type { RunIdentity } from "./run-identity.js";
import { type PartScores, ScoreFiles } from "./score-files.js";

export interface RememberingExecutorOptions {
  /** Evaluates what is not known; disposed with the result. */
  readonly executor: Executor;
  readonly model: MoeModel;
  /** Folder of the scores, made where it is missing. Any number of runs and processes may share it. */
  readonly folder: string;
  /**
   * Everything besides the plan that decides its scores to the last bit: model fingerprint, hash of the samples, objective,
   * versions of what computes, kind of processor.
   */
  readonly identity: RunIdentity;
  /** Number of samples, where it is known beforehand: scores of another number are not taken. */
  readonly samples?: number;
  /** Hears one warning, `cache`, when scores can no longer be written; the run goes on without. */
  readonly emitter?: RunEmitter;
}

/**
 * An executor that finds the scores of plans again which any run evaluated before, those of single parts included, and keeps
 * new ones. Its results are those of `executor`, so a run takes the same course and spends the same budget with and without;
 * only the work is less. Plans that fail are not kept.
 *
 * @throws COPPICE_IO_WRITE, COPPICE_IO_NO_SPACE when the folder cannot be made
 */
export async function rememberingExecutor(options: RememberingExecutorOptions): Promise<Executor> {
  const { executor, model, samples, emitter } = options;
  const files = await ScoreFiles.open(options.folder, options.identity);
  const byParts = (executor.parts ?? 1) > 1;
  let writes = true;

  const read = async (key: string): Promise<(PlanScores | undefined)[] | undefined> => {
    const found = await files.read(key);
    return found && fits(found, executor.parts, samples) ? [...found] : undefined;
  };
  const writeNow = async (key: string, parts: PartScores): Promise<void> => {
    // Another call or run may have found more of a plan that races.
    const found = parts.includes(undefined) ? await read(key) : undefined;
    const sound = parts.map((part, i) => (part?.scores.every(Number.isFinite) ? part : found?.[i]));
    if (!writes || !sound.some(Boolean)) return;
    try {
      await files.write(key, sound);
    } catch (error) {
      if (writes) emitter?.notify("warn", { code: "cache", message: (error as Error).message });
      writes = false;
    }
  };
  /** By key; parts that are found at the same time are added to one file after one another. */
  const writing = new Map<string, Promise<void>>();
  const write = async (key: string, parts: PartScores): Promise<void> => {
    const end = (writing.get(key) ?? Promise.resolve()).then(() => writeNow(key, parts));
    writing.set(key, end);
    await end;
    if (writing.get(key) === end) writing.delete(key);
  };

  /** What is known of every plan, after evaluating what of `part`, or of all parts, is not. */
  const complete = async (
    plans: readonly Plan[],
    keys: readonly string[],
    part: number | undefined,
    signal: AbortSignal | undefined,
  ): Promise<(PlanScores | undefined)[][]> => {
    const known = await Promise.all(keys.map(read));
    const changed = new Set<number>();
    const run = async (
      lacks: (parts: readonly (PlanScores | undefined)[] | undefined) => boolean,
      asked: number | undefined,
    ) => {
      const missing = [...plans.keys()].filter((i) => lacks(known[i]));
      if (missing.length === 0) return;
      const results = await executor.evaluate(
        missing.map((i) => plans[i] as Plan),
        { ...(signal && { signal }), ...(asked !== undefined && { part: asked }) },
      );
      if (results.length !== missing.length) {
        throw new CoppiceError(
          "COPPICE_INTERNAL",
          `the executor returned ${results.length} results for ${missing.length} plans`,
        );
      }
      missing.forEach((i, r) => {
        const result = results[r] as PlanScores;
        if (asked === undefined) known[i] = split(result, executor.parts);
        else {
          const parts = known[i] ?? Array.from({ length: executor.parts as number }, () => undefined);
          parts[asked] = result;
          known[i] = parts;
        }
        changed.add(i);
      });
    };
    if (part === undefined)
      await run((parts) => !parts || (!byParts && parts.includes(undefined)), undefined);
    for (const one of part !== undefined ? [part] : byParts ? Array(executor.parts).keys() : []) {
      await run((parts) => !parts?.[one], one);
    }
    // Where the number of samples was not known beforehand, parts in a file may turn out to be another task's.
    if (part === undefined) await run((parts) => !parts || !fits(parts, executor.parts, samples), undefined);
    await Promise.all([...changed].map((i) => write(keys[i] as string, known[i] as PartScores)));
    return known as (PlanScores | undefined)[][];
  };

  const dispose = () => executor.dispose();
  return {
    preferredBatch: executor.preferredBatch,
    ...(executor.parts !== undefined && { parts: executor.parts }),
    ...(executor.busyParts !== undefined && { busyParts: executor.busyParts }),
    async evaluate(plans, { signal, part: asked } = {}) {
      // The only part is the whole.
      const part = byParts ? asked : undefined;
      const keys = plans.map((plan) => planKey(plan, model));
      const known = await complete(plans, keys, part, signal);
      return known.map((parts) =>
        part === undefined ? join(parts as PlanScores[]) : (parts[part] as PlanScores),
      );
    },
    work: () => executor.work(),
    dispose,
    [Symbol.asyncDispose]: dispose,
  };
}

/** Whether the parts are as many, and as large, as those of so many samples are. */
function fits(parts: PartScores, count: number | undefined, samples: number | undefined): boolean {
  const sizes = parts.map((part) => part?.scores.length);
  const total =
    samples ??
    (sizes.includes(undefined) ? undefined : (sizes as number[]).reduce((sum, size) => sum + size, 0));
  if (parts.length !== (count ?? (total === undefined ? 1 : raceParts(total)))) return false;
  return (
    total === undefined ||
    sizes.every(
      (size, part) => size === undefined || size === partSamples(total, parts.length, part, part + 1).length,
    )
  );
}

function split({ scores, correct }: PlanScores, parts = raceParts(scores.length)): PlanScores[] {
  return Array.from({ length: parts }, (_, part) => {
    const own = partSamples(scores.length, parts, part, part + 1);
    return {
      scores: Float64Array.from(own, (i) => scores[i] as number),
      ...(correct && { correct: Uint8Array.from(own, (i) => correct[i] as number) }),
    };
  });
}

function join(parts: readonly PlanScores[]): PlanScores {
  const total = parts.reduce((sum, { scores }) => sum + scores.length, 0);
  const at = (i: number) => [parts[i % parts.length] as PlanScores, Math.floor(i / parts.length)] as const;
  const scores = Float64Array.from({ length: total }, (_, i) => {
    const [part, place] = at(i);
    return part.scores[place] as number;
  });
  if (!parts.every(({ correct }) => correct)) return { scores };
  const correct = Uint8Array.from({ length: total }, (_, i) => {
    const [part, place] = at(i);
    return part.correct?.[place] as number;
  });
  return { scores, correct };
}
