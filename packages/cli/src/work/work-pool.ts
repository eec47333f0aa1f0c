import { type AttentionPlan, CoppiceError, type RunEmitter } from "@coppice/core";
import { createRemotePool, type WorkTransport } from "@coppice/evaluate";
import { createModelPool, type ModelPool } from "@coppice/executor-local";
import * as v from "valibot";
import type { CliContext } from "../context.js";
import { type FoundPlugin, findPlugin } from "../plugins/find-plugin.js";
import { version } from "../version.js";
import { attentionHash } from "./attention-plan-file.js";
import { backendSource, type PoolOptions } from "./model-pool.js";
import type { OpenModel } from "./open-model.js";

/** What a search or an evaluation needs of a model, wherever it runs. */
export type WorkPool = Pick<
  ModelPool,
  "scorer" | "evaluateTask" | "collectStatistics" | "writeSamples" | "dispose"
> &
  Partial<Pick<ModelPool, "workers" | "logits" | "evaluatePositions">> &
  AsyncDisposable;

export interface WorkPoolOptions extends PoolOptions {
  readonly executor: string;
  readonly executorSet?: Readonly<Record<string, unknown>>;
}

/** A pool that scores and evaluates under an attention plan. */
export function underAttention<T extends Pick<ModelPool, "scorer" | "evaluateTask">>(
  pool: T,
  plan: AttentionPlan | undefined,
): T {
  if (!plan) return pool;
  return {
    ...pool,
    scorer: (request: Parameters<T["scorer"]>[0]) => pool.scorer({ ...request, attention: plan }),
    evaluateTask: (request: Parameters<T["evaluateTask"]>[0]) =>
      pool.evaluateTask({ ...request, attention: { plan } }),
  };
}

const positive = v.pipe(v.number(), v.gtValue(0));
const count = v.pipe(v.number(), v.safeInteger(), v.minValue(1));
const redisSettings = v.strictObject({
  queue: v.optional(v.string()),
  window: v.optional(count),
  answerSeconds: v.optional(positive),
  unreachableSeconds: v.optional(positive),
});
const commandSettings = v.strictObject({
  command: v.union([v.pipe(v.array(v.string()), v.minLength(1)), v.string()]),
  folder: v.optional(v.string()),
  batch: v.optional(count),
  parallel: v.optional(count),
  attempts: v.optional(count),
  timeoutSeconds: v.optional(positive),
});

/** A word of a command line without the user and password of an address in it, for what is shown or kept. */
export function withoutPassword(word: string): string {
  return word.replace(/^((?:--\w+=)?\w+:\/\/).*@/, "$1");
}

/** What computes, in one line. Workers compare it, so that one search has one arithmetic and one attention. */
export function engineOf(
  backend: FoundPlugin,
  options: Readonly<Record<string, unknown>> = {},
  attention?: AttentionPlan,
): string {
  const sorted = Object.entries(options).sort(([a], [b]) => (a < b ? -1 : 1));
  const limits = attention ? `, attention ${attentionHash(attention)}` : "";
  return `coppice ${version}, ${backend.package} ${backend.version} ${backend.name} ${JSON.stringify(sorted)}${limits}`;
}

/**
 * The workers that the user named: processes of this machine, a queue, or a command. A pool elsewhere loads the model
 * here only when statistics are collected or samples are written.
 * @param attention what plans are scored and evaluated under; workers elsewhere refuse work under another
 */
export async function openWorkPool(
  opened: OpenModel,
  options: WorkPoolOptions,
  context: CliContext,
  emitter: RunEmitter,
  attention?: AttentionPlan,
): Promise<WorkPool> {
  const backend = findPlugin("backend", options.backend, context.io.cwd);
  const here = () =>
    createModelPool({
      model: opened.path,
      backend: backendSource(backend, options),
      signal: context.signal,
      ...(options.workers !== undefined && { workers: options.workers }),
    });
  const transport = await openTransport(options, context, emitter);
  if (!transport) return underAttention(await here(), attention);
  const { model } = opened.checkpoint;
  const remote = createRemotePool({
    model,
    engine: engineOf(backend, options.backendSet, attention),
    transport,
    emitter,
  });
  const dispose = () => remote.dispose();
  return {
    scorer: (request) => remote.scorer(request),
    async evaluateTask({ attention: limits, ...request }) {
      if (!limits || limits.plan === attention) return remote.evaluateTask(request);
      throw new CoppiceError(
        "COPPICE_USAGE",
        `the executor ${withoutPassword(options.executor)} evaluates under attention plans, not under masks of plugins`,
        { hint: "give --executor local, or the file of an attention plan" },
      );
    },
    async collectStatistics(request) {
      await using pool = await here();
      // Awaited, or the pool would be gone before its answer is there.
      return await pool.collectStatistics(request);
    },
    async writeSamples(request) {
      await using pool = await here();
      return await pool.writeSamples(request);
    },
    dispose,
    [Symbol.asyncDispose]: dispose,
  };
}

async function openTransport(
  { executor, executorSet = {} }: WorkPoolOptions,
  context: CliContext,
  emitter: RunEmitter,
): Promise<WorkTransport | undefined> {
  const { signal } = context;
  if (executor === "local") {
    parseSettings(v.strictObject({}), executor, executorSet);
    return undefined;
  }
  if (/^rediss?:\/\//.test(executor)) {
    const { answerSeconds, unreachableSeconds, queue, window } = parseSettings(
      redisSettings,
      "redis",
      executorSet,
    );
    const { connectBullmq } = await import("@coppice/executor-bullmq");
    return connectBullmq({
      redis: executor,
      signal,
      emitter,
      ...(queue !== undefined && { queue }),
      ...(window !== undefined && { window }),
      ...(answerSeconds !== undefined && { answerMs: 1000 * answerSeconds }),
      ...(unreachableSeconds !== undefined && { unreachableMs: 1000 * unreachableSeconds }),
    });
  }
  if (executor === "command") {
    const settings = parseSettings(commandSettings, executor, executorSet);
    const { command, folder, timeoutSeconds, batch, parallel, attempts } = settings;
    const { connectCommand } = await import("@coppice/executor-command");
    return connectCommand({
      command: typeof command === "string" ? [command] : command,
      emitter,
      ...(folder !== undefined && { folder: context.path(folder) }),
      ...(batch !== undefined && { batch }),
      ...(parallel !== undefined && { parallel }),
      ...(attempts !== undefined && { attempts }),
      ...(timeoutSeconds !== undefined && { timeoutMs: 1000 * timeoutSeconds }),
    });
  }
  throw new CoppiceError(
    "COPPICE_USAGE",
    `the executor is ${JSON.stringify(withoutPassword(executor))}, expected local, command or an address such as redis://host:6379`,
  );
}

function parseSettings<T>(
  schema: v.GenericSchema<unknown, T>,
  executor: string,
  value: Readonly<Record<string, unknown>>,
): T {
  const parsed = v.safeParse(schema, value);
  if (parsed.success) return parsed.output;
  const problems = parsed.issues.map((issue) => `${v.getDotPath(issue) ?? "settings"}: ${issue.message}`);
  throw new CoppiceError(
    "COPPICE_USAGE",
    `--executor-set is not what the executor ${executor} takes: ${problems.join("; ")}`,
    { details: { problems } },
  );
}
