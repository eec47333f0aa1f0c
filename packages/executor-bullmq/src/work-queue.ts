import { CoppiceError } from "@coppice/core";
import type { SampleSet, WorkOutcome, WorkRequest } from "@coppice/evaluate";
import { Queue, QueueEvents } from "bullmq";
import type { Redis } from "ioredis";
import { keyPrefix } from "./connect.js";

/** Name of every job. */
export const jobName = "measure";
/** How long results and samples stay in Redis when no one asks for them. */
const keptSeconds = 24 * 60 * 60;
/** Results that stay in Redis: a few kilobytes each. */
const keptResults = 5_000;
/** Entries of the stream of events; they hold results too. */
const keptEvents = 1_000;
/** Active jobs that are looked at for a sign of life. */
const watchedJobs = 100;

/** The queue as its coordinator sees it: jobs are put, looked at and removed; nothing here waits for results. */
export class WorkQueue {
  readonly name: string;
  readonly #client: Redis;
  readonly #queue: Queue<WorkRequest, WorkOutcome>;
  readonly #events: QueueEvents;

  constructor(client: Redis, name: string, onError: (error: Error) => void) {
    this.name = name;
    this.#client = client;
    this.#queue = new Queue(name, {
      connection: client,
      prefix: keyPrefix,
      streams: { events: { maxLen: keptEvents } },
      defaultJobOptions: {
        removeOnComplete: { age: keptSeconds, count: keptResults },
        removeOnFail: { age: keptSeconds, count: keptResults },
      },
    });
    this.#events = new QueueEvents(name, { connection: client, prefix: keyPrefix });
    this.#queue.on("error", onError);
    this.#events.on("error", onError);
  }

  /** Events are quick and may be lost; `look` is slow and true. */
  listen(listener: {
    onFinished(id: string): void;
    onCompleted(id: string, value: unknown): void;
    onProgress(id: string, value: unknown): void;
  }): void {
    this.#events.on("completed", ({ jobId, returnvalue }) => listener.onCompleted(jobId, returnvalue));
    this.#events.on("failed", ({ jobId }) => listener.onFinished(jobId));
    this.#events.on("duplicated", ({ jobId }) => listener.onFinished(jobId));
    this.#events.on("progress", ({ jobId, data }) => listener.onProgress(jobId, data));
  }

  /** Puts a job, unless Redis has one of this id in whatever state. */
  async put(request: WorkRequest): Promise<void> {
    await this.#queue.add(jobName, request, { jobId: request.id });
  }

  async putSamples({ hash, text }: SampleSet): Promise<void> {
    const key = samplesKey(this.name, hash);
    if ((await this.#client.expire(key, keptSeconds)) === 0) {
      await this.#client.set(key, text, "EX", keptSeconds);
    }
  }

  /** What Redis knows of a job. */
  async look(
    id: string,
  ): Promise<
    | { state: "missing" }
    | { state: "waiting"; progress: unknown }
    | { state: "completed"; value: unknown }
    | { state: "failed"; reason: string }
  > {
    const state = await this.#queue.getJobState(id);
    if (state === "unknown") return { state: "missing" };
    const job = await this.#queue.getJob(id);
    if (!job) return { state: "missing" };
    if (state !== "completed" && state !== "failed") return { state: "waiting", progress: job.progress };
    return state === "completed"
      ? { state, value: job.returnvalue }
      : { state, reason: job.failedReason ?? "no reason is known" };
  }

  /** Removes a job that no worker is at. */
  async remove(id: string): Promise<void> {
    await this.#queue.remove(id);
  }

  /** True when a worker is at any job of the queue now. */
  async alive(): Promise<boolean> {
    const ids = await this.#client.lrange(this.#queue.toKey("active"), 0, watchedJobs - 1);
    if (ids.length === 0) return false;
    return (await this.#client.exists(...ids.map((id) => `${this.#queue.toKey(id)}:lock`))) > 0;
  }

  async close(): Promise<void> {
    await Promise.allSettled([this.#events.close(), this.#queue.close()]);
  }
}

export function samplesKey(queue: string, hash: string): string {
  return `${keyPrefix}:${queue}:samples:${hash}`;
}

/** What a worker writes as progress of a job that it puts back, because it is not for it. */
export interface Refusal {
  readonly refused: string;
  readonly worker: string;
}

export function readRefusal(value: unknown): Refusal | undefined {
  const { refused, worker } = (typeof value === "object" && value !== null ? value : {}) as Partial<Refusal>;
  if (typeof refused !== "string" || typeof worker !== "string") return undefined;
  return { refused: refused.slice(0, 2_000), worker: worker.slice(0, 200) };
}

/** BullMQ's words for a job whose workers ended one after the other. */
export function crashed(reason: string): CoppiceError | undefined {
  if (!/stalled/i.test(reason)) return undefined;
  return new CoppiceError(
    "COPPICE_BACKEND_CRASHED",
    `every worker that took a plan ended while it was at it, ${stalledTries} in all`,
    { hint: "look at what the workers wrote; when memory is short, use fewer of them", details: { reason } },
  );
}

/** Workers that one job may end before it is given up. */
export const stalledTries = 3;
