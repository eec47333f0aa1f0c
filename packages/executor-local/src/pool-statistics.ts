import {
  type CollectedStatistics,
  type DataKind,
  PartSum,
  partRanges,
  type SampleOptions,
} from "@coppice/calibrate";
import { CoppiceError, type ExtraField } from "@coppice/core";
import { all, progressOf } from "./on-hosts.js";
import type { PoolTaskOptions } from "./pool-task.js";
import type { CalibrationData, DataCollection } from "./protocol.js";
import type { WorkerHost } from "./worker-host.js";

/** What to collect on which data. */
export interface StatisticsOptions extends PoolTaskOptions {
  /**
   * Prompts alone, with the answers of the task behind them, or with the model's own greedy continuations; texts are read
   * as they are. Default: answers.
   */
  readonly kind?: Exclude<DataKind, "text">;
  /** What to collect beside the sums that all statistics have. */
  readonly extras?: readonly ExtraField[];
  /** Single tokens to keep; default none. */
  readonly sample?: SampleOptions;
}

export interface PoolStatisticsOptions extends StatisticsOptions {
  /** Generations: most new tokens of each prompt. Default 128. */
  readonly maxTokens?: number;
}

/** Parts that calibration data is cut into: enough for any number of workers to share, few enough to cost nothing. */
const statisticsParts = 16;
/** Prompts that are continued side by side take at most this many tokens, what is written included. */
const generatedTokens = 4096;
const defaultMaxTokens = 128;

/** What to collect on the data of a task, whatever its tokens will be. @throws COPPICE_USAGE */
export function taskCollection(
  { task, kind = "answers", chat, limit, extras, sample }: StatisticsOptions,
  more: Readonly<Record<string, number>> = {},
): Omit<DataCollection, "sequences"> {
  if (task.form === "text" && kind !== "answers") {
    throw new CoppiceError(
      "COPPICE_USAGE",
      `${task.name} is text, which has no ${kind}; expected a task with prompts`,
    );
  }
  return {
    name: task.name,
    kind: task.form === "text" ? "text" : kind,
    sourceOptions: { ...(chat !== undefined && { chat }), ...(limit !== undefined && { limit }), ...more },
    parts: statisticsParts,
    ...(extras && { extras }),
    ...(sample && { sample }),
  };
}

/** The samples whose tokens are read; the model's own continuations follow prompts. */
export function taskData({ task, kind, limit, chat }: StatisticsOptions): CalibrationData {
  return {
    task,
    promptsOnly: kind === "prompts" || kind === "generations",
    ...(limit !== undefined && { limit }),
    ...(chat !== undefined && { chat }),
  };
}

/** Statistics of the samples, which several workers share; the bits do not depend on how many there are. */
export async function collectOnHosts(
  hosts: readonly WorkerHost[],
  options: PoolStatisticsOptions,
): Promise<CollectedStatistics> {
  const { kind, maxTokens = defaultMaxTokens, emitter, signal: stop } = options;
  const generated = kind === "generations";
  const common = taskCollection(options, generated ? { maxTokens } : {});
  const data = await (hosts[0] as WorkerHost).call("calibrationData", taskData(options), { signal: stop });
  const sequences = generated ? await continueOnHosts(hosts, data, maxTokens, options) : data;
  const onDone = progressOf(emitter, "collecting statistics", "tokens");
  const sum = new PartSum();
  await all(hosts, stop, (host, index, signal) =>
    host.call(
      "collectStatistics",
      { collection: { ...common, sequences }, shard: { index, count: hosts.length } },
      { signal, onEvent: (event) => (event.type === "part" ? sum.add(event.part) : onDone(event)) },
    ),
  );
  return sum.result();
}

/** Prompts in groups that do not depend on the workers, each group continued by the next worker that is free. */
async function continueOnHosts(
  hosts: readonly WorkerHost[],
  prompts: readonly Int32Array[],
  maxTokens: number,
  { emitter, signal: stop }: PoolStatisticsOptions,
): Promise<Int32Array[]> {
  const lengths = prompts.map(({ length }) => length + maxTokens);
  const total = lengths.reduce((sum, length) => sum + length, 0);
  const groups = partRanges(lengths, Math.ceil(total / generatedTokens)).filter(
    ([begin, end]) => begin < end,
  );
  const onDone = progressOf(emitter, "generating", "samples");
  const results: Int32Array[][] = [];
  const waiting = groups.entries();
  await all(hosts, stop, async (host, _, signal) => {
    for (const [index, [begin, end]] of waiting) {
      const group = { prompts: prompts.slice(begin, end), maxTokens };
      results[index] = await host.call("continuePrompts", group, { signal });
      onDone({ type: "done", count: end - begin, total: prompts.length });
    }
  });
  return results.flat();
}
