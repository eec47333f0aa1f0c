import {
  addWork,
  CoppiceError,
  canonicalPlan,
  noWork,
  type Plan,
  type PlanScores,
  type Runner,
  throwIfAborted,
  type WorkCounters,
} from "@coppice/core";
import { choicesPerToken, countingRunner } from "./counting-runner.js";
import type { EncodedTask } from "./encode-task.js";
import { type Boundary, runBatch } from "./evidence.js";
import { MemoryCache } from "./memory-cache.js";
import { type MicroBatch, partBatches } from "./micro-batch.js";
import {
  checkObjective,
  defaultObjective,
  needsTeacher,
  type Objective,
  type SampleFitness,
  sampleFitness,
} from "./objective.js";
import { disposeHeld, type FoundBoundary, PrefixCache, prefixKeys } from "./prefix-cache.js";
import { type BatchTeacher, teachBatch } from "./teacher.js";

/** 256 MB, some 100 boundaries of 1,000 tokens in a model of hidden size 640. */
export const defaultPrefixCacheBytes = 256 * 1024 * 1024;
/**
 * Share of it for memories of layers. In a search of 700 plans on the demo model, half of the boundaries' room costs 0.1 % more
 * token-layers, and memories of that size save as much as unlimited ones.
 */
const memoryShare = 0.5;

/** Batches at a time that keep a device busy: some are computed while others are recorded, or their results on their way. */
const busyBatches = 4;

export interface EvaluatorOptions {
  /** Not disposed by the evaluator. */
  readonly runner: Runner;
  readonly task: EncodedTask;
  /** Default: `likelihood`, for text `log-likelihood`. */
  readonly objective?: Objective;
  /**
   * Memory for activations at layer boundaries and, half of it, for what the layers behind them computed (`LayerMemory`); 0
   * turns reuse off. Default 256 MB.
   */
  readonly prefixCacheBytes?: number;
  /** The batches that this evaluator owns of every part, some of `partBatches(task, runner.pace)`. Default: all of them. */
  readonly parts?: readonly (readonly MicroBatch[])[];
}

/**
 * Scores plans on one task, as searches need it: hundreds of plans, most of them alike in their first layers. Disposing it
 * lets go of what it keeps for reuse; dispose it before its runner.
 */
export interface Evaluator extends Disposable {
  /** Indices of the samples that it scores, ascending; all of the task unless it owns some batches only. */
  readonly samples: Int32Array;
  /** Those of each part. */
  readonly parts: readonly Int32Array[];
  /** Evaluations of one part at a time that keep the runner busy; of runners with a `pace`. */
  readonly busyParts?: number;
  /**
   * Scores of its samples, or of those of one part, in their order. Equal plans get equal bits, whatever was evaluated
   * before. Calls may overlap where the runner has a `pace`.
   * @param plan valid for the model
   * @throws COPPICE_ABORTED, and what the runner throws
   */
  evaluate(
    plan: Plan,
    options?: { readonly part?: number | undefined; readonly signal?: AbortSignal | undefined },
  ): Promise<PlanScores>;
  /** Work since creation, that of aborted evaluations included. */
  work(): WorkCounters;
}

/** @throws COPPICE_TASK_METRIC when the objective does not fit the task */
export function createEvaluator(options: EvaluatorOptions): Evaluator {
  const { runner, task, prefixCacheBytes = defaultPrefixCacheBytes } = options;
  const objective = options.objective ?? defaultObjective(task.form);
  checkObjective(objective, task.form);
  const { pace } = runner;
  const parts = options.parts ?? partBatches(task, pace);
  const model = runner.model;
  const sorted = (batches: readonly MicroBatch[]) =>
    Int32Array.from(batches.flatMap((batch) => batch.samples)).sort();
  const samples = sorted(parts.flat());
  const partSamples = parts.map(sorted);
  const sizes = parts.map((batches) => batches.reduce((sum, batch) => sum + batch.tokens, 0));
  // Parts are about equal in size.
  const entryBytes = Math.max(0, ...sizes) * model.hiddenSize * Float32Array.BYTES_PER_ELEMENT;
  const mean = sizes.reduce((sum, size) => sum + size, 0) / sizes.length;
  const busyParts = pace && Math.ceil((busyBatches * pace.batchTokens) / Math.max(1, mean));
  const remembers = runner.createMemory !== undefined;
  const share = remembers ? memoryShare : 0;
  const cache = new PrefixCache((1 - share) * prefixCacheBytes, entryBytes);
  const memories = new MemoryCache(share * prefixCacheBytes, runner.createMemory?.bind(runner));
  const counting = countingRunner(runner);
  /** Work before the boundaries that runs started from. */
  let reused = noWork;

  const teachers = new Map<MicroBatch, Promise<BatchTeacher>>();
  const teacherOf = async (batch: MicroBatch, signal: AbortSignal | undefined) => {
    if (!needsTeacher(objective)) return undefined;
    const known = teachers.get(batch) ?? teachBatch(counting, task, batch, signal);
    teachers.set(batch, known);
    try {
      return await known;
    } catch (error) {
      teachers.delete(batch);
      throw error;
    }
  };

  /** Runs a part and tells the result of every sample. */
  const run = async (
    plan: Plan,
    prefixes: readonly string[],
    part: number,
    signal: AbortSignal | undefined,
    tell: (sample: number, fitness: SampleFitness) => void,
  ) => {
    const keys = prefixes.map((key) => `${part}:${key}`);
    const start = cache.find(keys);
    try {
      await runFrom(start, keys, plan, part, signal, tell);
    } finally {
      start?.release();
    }
  };

  const runFrom = async (
    start: FoundBoundary | undefined,
    keys: readonly string[],
    plan: Plan,
    part: number,
    signal: AbortSignal | undefined,
    tell: (sample: number, fitness: SampleFitness) => void,
  ) => {
    const batches = parts[part] as readonly MicroBatch[];
    const from = start?.layer ?? 0;
    const boundaries = cache.worthStoring(keys, from);
    const stored = new Map<number, Boundary[]>(boundaries.map((layer) => [layer, []]));
    const remembered = memories.of(keys[from] as string, batches.length);
    const runOne = async (batch: MicroBatch, b: number) => {
      throwIfAborted(signal, "evaluating a plan");
      const { result, evidence } = await runBatch(counting, task, batch, {
        plan,
        from,
        hidden: start?.hidden[b],
        boundaries,
        paced: pace !== undefined,
        memory: remembered[b],
        teacher: await teacherOf(batch, signal),
        signal,
      });
      for (const [layer, values] of stored)
        values[b] = boundary((pace ? result.held : undefined) ?? result.boundaries, layer);
      reused = addWork(reused, {
        ...noWork,
        avoidedTokenLayers: batch.tokens * from,
        avoidedExpertTokens: batch.tokens * choicesPerToken(model, plan, 0, from),
      });
      batch.samples.forEach((sample, i) => {
        tell(sample, sampleFitness(objective, task.form, evidence[i] as (typeof evidence)[number]));
      });
    };
    try {
      await each(batches, runOne);
    } catch (error) {
      for (const values of stored.values()) disposeHeld(values.filter((one) => one !== undefined));
      throw error;
    }
    for (const [layer, values] of stored) cache.store(keys[layer] as string, values);
    memories.trim();
  };

  /** One after another, or all at once where the runner takes overlapping runs. */
  const each = async <T>(items: readonly T[], work: (item: T, i: number) => Promise<void>): Promise<void> => {
    if (!pace) {
      for (const [i, item] of items.entries()) await work(item, i);
      return;
    }
    const ends = await Promise.allSettled(items.map(work));
    for (const end of ends) if (end.status === "rejected") throw end.reason;
  };

  return {
    samples,
    parts: partSamples,
    ...(busyParts !== undefined && { busyParts }),
    async evaluate(plan, { part, signal } = {}) {
      const wanted = part === undefined ? samples : (partSamples[part] ?? new Int32Array());
      const rank = new Map(Array.from(wanted, (sample, i) => [sample, i]));
      const scores = new Float64Array(wanted.length);
      const correct = task.form === "text" ? undefined : new Uint8Array(wanted.length);
      // Equal plans in other words (slots in another order) must run as one, to the last bit.
      const canonical = canonicalPlan(plan, model);
      const prefixes = prefixKeys(canonical, model);
      await each(part === undefined ? [...parts.keys()] : [part], (index) =>
        run(canonical, prefixes, index, signal, (sample, fitness) => {
          const at = rank.get(sample) as number;
          scores[at] = fitness.score;
          if (correct && fitness.correct) correct[at] = 1;
        }),
      );
      return { scores, ...(correct && { correct }) };
    },
    work: () => addWork(counting.work(), reused),
    [Symbol.dispose]() {
      cache.clear();
      memories.clear();
      teachers.clear();
    },
  };
}

function boundary(boundaries: ReadonlyMap<number, Boundary>, layer: number): Boundary {
  const values = boundaries.get(layer);
  if (values) return values;
  throw new CoppiceError(
    "COPPICE_BACKEND_FAILED",
    `the backend returned no boundary ${layer}, which was asked for`,
  );
}
