import {
  addWork,
  CoppiceError,
  type Executor,
  noWork,
  type Plan,
  type PlanScores,
  raceParts,
} from "@coppice/core";

/** One of several tasks that plans are scored on together. */
export interface CombinedTask {
  /** For messages. */
  readonly name: string;
  /** Scores plans on the samples of the task; disposed with the combination. */
  readonly executor: Executor;
  /** How much the task counts, whatever its number of samples. Above 0; only the ratios matter. */
  readonly weight: number;
  /** No sample scores less; the objective says what that is. */
  readonly least: number;
  /** Mean score that a plan has to reach. */
  readonly minimum?: number;
  /** Number of samples where it is known beforehand. Without it, or with minimums, plans are evaluated whole. */
  readonly samples?: number;
}

/**
 * Scores plans on several tasks at once, in their order, so that a search sees one task. With n of N samples and the share w of all weights,
 * a score s of a task becomes s w N / n, and the mean of all scores is the weighted mean of the tasks' means.
 *
 * A plan below a minimum scores less than any that reaches them all, and the less, the more it lacks: its mean is the
 * weighted mean of `least`, less the sum of what it lacks in every task (K. Deb, Computer Methods in Applied Mechanics and
 * Engineering 186, 2000, equation 4).
 *
 * Which samples are answered right is left out: strategies that go by that share would pass over weights and minimums.
 *
 * @throws COPPICE_USAGE for no task, and for numbers out of range
 */
export function combineExecutors(tasks: readonly CombinedTask[]): Executor {
  checkTasks(tasks);
  const weights = tasks.reduce((sum, { weight }) => sum + weight, 0);
  const shares = tasks.map(({ weight }) => weight / weights);
  const lowest = tasks.reduce((sum, { least }, t) => sum + (shares[t] as number) * least, 0);
  const parts = partsOf(tasks);
  // A part of all tasks is one of each.
  const busyParts = tasks.reduce<number | undefined>(
    (least, { executor: { busyParts: own } }) => own && Math.min(own, least ?? own),
    undefined,
  );

  const each = async (
    plans: readonly Plan[],
    options: (task: number) => { part?: number },
    signal?: AbortSignal,
  ): Promise<PlanScores[][]> => {
    const failed = new AbortController();
    const stop = signal ? AbortSignal.any([signal, failed.signal]) : failed.signal;
    try {
      return await Promise.all(
        tasks.map(({ executor }, t) => executor.evaluate(plans, { signal: stop, ...options(t) })),
      );
    } catch (error) {
      failed.abort();
      throw error;
    }
  };

  const joined = (scores: readonly PlanScores[], sizes: readonly number[]): PlanScores => {
    const total = sizes.reduce((sum, size) => sum + size, 0);
    const lacks = tasks.map(
      ({ minimum }, t) => minimum !== undefined && mean((scores[t] as PlanScores).scores) < minimum,
    );
    const missed = lacks.includes(true);
    const all = scores.flatMap(({ scores }, t) => {
      const { minimum = 0 } = tasks[t] as CombinedTask;
      const perSample = total / (sizes[t] as number);
      if (!missed) return Array.from(scores, (score) => score * (shares[t] as number) * perSample);
      // Times 0, so that NaN stays NaN and a broken candidate is seen as broken.
      return Array.from(scores, (score) => lowest + (lacks[t] ? (score - minimum) * perSample : 0 * score));
    });
    return { scores: Float64Array.from(all) };
  };

  const dispose = async () => {
    await Promise.all(tasks.map(({ executor }) => executor.dispose()));
  };
  return {
    preferredBatch: Math.max(...tasks.map(({ executor }) => executor.preferredBatch)),
    ...(parts > 1 && { parts }),
    ...(busyParts !== undefined && { busyParts }),
    async evaluate(plans, { signal, part } = {}) {
      if (part === undefined) {
        const results = await each(plans, () => ({}), signal);
        return plans.map((_, i) => {
          const scores = results.map((result) => result[i] as PlanScores);
          const sizes = scores.map(({ scores }) => scores.length);
          tasks.forEach((task, t) => {
            checkSize(task, sizes[t] as number);
          });
          return joined(scores, sizes);
        });
      }
      const sizes = tasks.map(({ samples = 0 }) => samples);
      const begins = sizes.map((_, t) => sizes.slice(0, t).reduce((sum, size) => sum + size, 0));
      // Sample j of a task is sample begin + j of all, so its part j modulo parts is another one of all.
      const own = (t: number) => ({ part: (((part - (begins[t] as number)) % parts) + parts) % parts });
      const results = await each(plans, own, signal);
      return plans.map((_, i) =>
        joined(
          results.map((result) => result[i] as PlanScores),
          sizes,
        ),
      );
    },
    work() {
      return tasks.reduce((sum, { executor }) => addWork(sum, executor.work()), noWork);
    },
    dispose,
    [Symbol.asyncDispose]: dispose,
  };
}

/**
 * Parts of the samples of all tasks. A minimum says something only when all samples are known; and every task has to be cut
 * in as many parts as all of them together.
 */
function partsOf(tasks: readonly CombinedTask[]): number {
  if (tasks.some(({ minimum, samples }) => minimum !== undefined || samples === undefined)) return 1;
  const parts = raceParts(tasks.reduce((sum, { samples = 0 }) => sum + samples, 0));
  return tasks.every(({ executor }) => executor.parts === parts) ? parts : 1;
}

function checkTasks(tasks: readonly CombinedTask[]): void {
  if (tasks.length === 0)
    throw new CoppiceError("COPPICE_USAGE", "there are no tasks, expected at least one");
  for (const { name, weight, least, minimum = 0 } of tasks) {
    if (weight > 0 && [weight, least, minimum].every(Number.isFinite)) continue;
    throw new CoppiceError(
      "COPPICE_USAGE",
      `the task ${name} has the weight ${weight}, the least score ${least} and the minimum ${minimum}; ` +
        "expected finite numbers and a weight above 0",
    );
  }
}

function checkSize({ name, samples }: CombinedTask, size: number): void {
  if (samples === undefined || size === samples) return;
  throw new CoppiceError(
    "COPPICE_INTERNAL",
    `the executor of ${name} returned ${size} scores for one plan, expected ${samples}`,
  );
}

function mean(values: ArrayLike<number>): number {
  let sum = 0;
  for (let i = 0; i < values.length; i++) sum += values[i] as number;
  return sum / values.length;
}
