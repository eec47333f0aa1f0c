import { CoppiceError, type Plan, type RunEmitter } from "@coppice/core";
import {
  checkLengths,
  factsTask,
  type LongContextOptions,
  type LongContextTask,
  loadTokenizer,
  type Metric,
  type PlaceScore,
  type PositionScores,
  retrievalTask,
  scoresByPlace,
  type TaskScore,
  type TextTask,
} from "@coppice/evaluate";
import type { AttentionSource } from "@coppice/executor-local";
import type { CliContext } from "../context.js";
import type { OpenModel } from "./open-model.js";
import { readTask } from "./task-file.js";
import type { WorkPool } from "./work-pool.js";

export const longContextKinds = ["retrieval", "facts", "positions"] as const;
export type LongContextKind = (typeof longContextKinds)[number];

export interface LongContextRequest {
  readonly kind: LongContextKind;
  readonly lengths?: readonly number[];
  readonly depths?: readonly number[];
  readonly samples: number;
  readonly confusing?: number;
  readonly parts?: number;
  readonly limit?: number;
  readonly data?: string;
  readonly metric?: string;
  readonly seed: number;
  readonly chat?: boolean;
}

/** What every kind is measured under. */
export interface MeasuredUnder {
  readonly plan?: Plan | undefined;
  readonly attention?: AttentionSource | undefined;
}

/** Scores by length and depth, or by position. */
export type LongContextScores =
  | { readonly kind: "retrieval" | "facts"; readonly score: TaskScore; readonly places: PlaceScores }
  | { readonly kind: "positions"; readonly name: string; readonly windows: readonly PositionScores[] };

export interface PlaceScores {
  readonly cells: readonly PlaceScore[];
  readonly lengths: readonly PlaceScore[];
}

/** Lengths that are measured unless others are asked for, as far as a model's context goes. */
const usualLengths: readonly number[] = [1024, 2048, 4096];

export function wantedLengths(
  { lengths }: Pick<LongContextRequest, "lengths">,
  context: number,
): readonly number[] {
  if (lengths) return lengths;
  const fitting = usualLengths.filter((length) => length <= context);
  return fitting.length > 0 ? fitting : [context];
}

/** Work that is checked before any model is loaded into workers. */
export interface LongContextJob {
  run(pool: WorkPool, under: MeasuredUnder, emitter: RunEmitter): Promise<LongContextScores>;
}

/**
 * Makes the samples of a long-context evaluation.
 * @throws COPPICE_USAGE, COPPICE_TASK_TOO_LONG, COPPICE_TASK_EMPTY, and the errors of reading files
 */
export async function longContextJob(
  { checkpoint }: OpenModel,
  request: LongContextRequest,
  context: CliContext,
): Promise<LongContextJob> {
  const { model, folder } = checkpoint;
  const { kind, samples, seed, depths, chat, data, confusing, metric } = request;
  checkFitting(request);
  const lengths = wantedLengths(request, model.contextLength);
  checkLengths(lengths, model);
  const texts = data === undefined ? undefined : await readTexts(data, context);
  if (kind === "positions") return positionsJob(request, lengths, texts, context);
  const options: LongContextOptions = {
    tokenizer: await loadTokenizer(folder),
    model,
    lengths,
    samples,
    seed,
    ...(depths && { depths }),
    ...(chat !== undefined && { chat }),
  };
  const made: LongContextTask =
    kind === "retrieval"
      ? retrievalTask(options)
      : factsTask({ ...options, ...(texts && { texts }), ...(confusing !== undefined && { confusing }) });
  return {
    async run(pool, { plan, attention }, emitter) {
      const score = await pool.evaluateTask({
        task: made.task,
        metric: metric ?? made.metric,
        chat: chat ?? false,
        signal: context.signal,
        emitter,
        ...(plan && { plan }),
        ...(attention && { attention }),
      });
      return { kind, score, places: scoresByPlace(score, made.places) };
    },
  };
}

function positionsJob(
  { parts, limit }: LongContextRequest,
  lengths: readonly number[],
  texts: TextTask | undefined,
  context: CliContext,
): LongContextJob {
  if (!texts) {
    throw new CoppiceError("COPPICE_USAGE", "--long-context positions needs texts: give --data <file>");
  }
  return {
    async run({ evaluatePositions }, { plan, attention }, emitter) {
      if (!evaluatePositions) {
        throw new CoppiceError(
          "COPPICE_USAGE",
          "perplexity by position is measured on this machine only: --executor local",
        );
      }
      const windows: PositionScores[] = [];
      for (const length of lengths) {
        windows.push(
          await evaluatePositions({
            task: texts,
            length,
            signal: context.signal,
            emitter,
            ...(parts !== undefined && { parts }),
            ...(limit !== undefined && { limit }),
            ...(plan && { plan }),
            ...(attention && { attention }),
          }),
        );
      }
      return { kind: "positions", name: texts.name, windows };
    },
  };
}

/** Options that only some kinds have. @throws COPPICE_USAGE */
function checkFitting({
  kind,
  depths,
  data,
  confusing,
  parts,
  metric,
  chat,
  limit,
}: LongContextRequest): void {
  const only: readonly (readonly [string, unknown, readonly LongContextKind[]])[] = [
    ["--depths", depths, ["retrieval", "facts"]],
    ["--metric", metric, ["retrieval", "facts"]],
    ["--chat", chat, ["retrieval", "facts"]],
    ["--confusing", confusing, ["facts"]],
    ["--data", data, ["facts", "positions"]],
    ["--parts", parts, ["positions"]],
    ["--limit", limit, ["positions"]],
  ];
  for (const [option, value, kinds] of only) {
    if (value === undefined || kinds.includes(kind)) continue;
    throw new CoppiceError(
      "COPPICE_USAGE",
      `${option} is no option of --long-context ${kind}, it is one of ${kinds.join(" and ")}`,
    );
  }
}

async function readTexts(path: string, context: CliContext): Promise<TextTask> {
  const task = await readTask(path, context);
  if (task.form === "text") return task;
  throw new CoppiceError(
    "COPPICE_USAGE",
    `${task.name} holds samples of the form "${task.form}", expected texts`,
    { hint: 'give a .txt file, or lines of {"text": "..."}' },
  );
}

/** The name of the metric of what was measured. */
export function measuredMetric(scores: LongContextScores): Metric {
  return scores.kind === "positions" ? "perplexity" : scores.score.metric;
}
