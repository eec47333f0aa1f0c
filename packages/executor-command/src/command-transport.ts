import { setMaxListeners } from "node:events";
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  abortedError,
  CoppiceError,
  checkWholeNumber,
  isCoppiceError,
  type RunEmitter,
  throwIfAborted,
} from "@coppice/core";
import {
  type ParsedOutcome,
  parseOutcome,
  type SampleSet,
  WorkPlaces,
  type WorkRequest,
  type WorkTransport,
  workVersion,
} from "@coppice/evaluate";
import { checkCommand, fillCommand } from "./command-line.js";
import { runProgram } from "./run-program.js";
import { readResultFile, writeWhole } from "./work-file.js";

export interface CommandTransportOptions {
  /**
   * Program and arguments. `{request}` and `{result}` stand for the paths of the two files; without them both are
   * appended. The environment has them as COPPICE_REQUEST and COPPICE_RESULT.
   */
  readonly command: readonly string[];
  /** Folder for the files, which the machines that work must see too. Default: the system's temporary folder. */
  readonly folder?: string;
  /** Plans per command. Default 8. */
  readonly batch?: number;
  /** Commands at once. Default 1. */
  readonly parallel?: number;
  /** Times that plans are tried before the run is given up. Default 3. */
  readonly attempts?: number;
  /** Longest time of one command, waiting in a batch system included. Default 1 hour. */
  readonly timeoutMs?: number;
  /** Pause before the second attempt; it doubles from there. Default 1 s. */
  readonly pauseMs?: number;
  /** Time from asking a command to end to ending it. Default 5 s. */
  readonly graceMs?: number;
  /** Time in which a result must appear after the command's end: network file systems are late. Default 5 s. */
  readonly settleMs?: number;
  /** Gets a `warn` for every attempt that failed. */
  readonly emitter?: RunEmitter;
}

const defaults: Required<Omit<CommandTransportOptions, "command" | "folder" | "emitter">> = {
  batch: 8,
  parallel: 1,
  attempts: 3,
  timeoutMs: 3_600_000,
  pauseMs: 1_000,
  graceMs: 5_000,
  settleMs: 5_000,
};

/**
 * Work by command: every batch is one run of a program that reads a request file and writes a result file.
 * @throws COPPICE_USAGE
 */
export function connectCommand(options: CommandTransportOptions): WorkTransport {
  return new CommandTransport(options);
}

class CommandTransport implements WorkTransport {
  readonly preferredBatch: number;
  readonly #options: typeof defaults & CommandTransportOptions;
  readonly #command: readonly string[];
  readonly #ending = new AbortController();
  readonly #running = new Set<Promise<unknown>>();
  readonly #places: WorkPlaces;

  constructor(options: CommandTransportOptions) {
    this.#command = checkCommand(options.command);
    this.#options = { ...defaults, ...options };
    for (const name of ["batch", "parallel", "attempts"] as const)
      checkWholeNumber(name, this.#options[name]);
    const { batch, parallel } = this.#options;
    this.#places = new WorkPlaces(parallel);
    this.preferredBatch = batch * parallel;
    setMaxListeners(0, this.#ending.signal);
  }

  async run(
    requests: readonly WorkRequest[],
    samples: SampleSet,
    options: { signal?: AbortSignal; onOutcome?: (outcome: ParsedOutcome) => void },
  ): Promise<ParsedOutcome[]> {
    const { signal, onOutcome } = options;
    throwIfAborted(signal, "waiting for commands");
    if (this.#ending.signal.aborted) throw disposed();
    // The first failure ends the other commands of the call.
    const failed = new AbortController();
    const stop = AbortSignal.any([this.#ending.signal, failed.signal, ...(signal ? [signal] : [])]);
    setMaxListeners(0, stop);
    const found = new Map<string, ParsedOutcome>();
    const batches: (readonly WorkRequest[])[] = [];
    const { batch } = this.#options;
    for (let at = 0; at < requests.length; at += batch) batches.push(requests.slice(at, at + batch));
    const tell = (outcome: ParsedOutcome, id: string) => {
      if (found.has(id)) return;
      found.set(id, outcome);
      onOutcome?.(outcome);
    };
    const work = batches.map((part) =>
      this.#places
        .with(stop, () => this.#batch(part, samples, stop, tell))
        .catch((error) => {
          failed.abort();
          throw error;
        }),
    );
    const settled = Promise.allSettled(work);
    this.#running.add(settled);
    try {
      await Promise.all(work);
    } catch (error) {
      // No command outlives the call that started it.
      await settled;
      throwIfAborted(signal, "waiting for commands");
      if (this.#ending.signal.aborted) throw disposed();
      throw error;
    } finally {
      this.#running.delete(settled);
    }
    return requests.map(({ id }) => found.get(id) as ParsedOutcome);
  }

  /** Runs commands until every request of the batch is answered; later attempts ask only for what is missing. */
  async #batch(
    batch: readonly WorkRequest[],
    samples: SampleSet,
    signal: AbortSignal,
    onOutcome: (outcome: ParsedOutcome, id: string) => void,
  ): Promise<void> {
    const { attempts, pauseMs, emitter } = this.#options;
    let missing = [...batch];
    for (let attempt = 1; missing.length > 0; attempt++) {
      const { answered, problem } = await this.#attempt(missing, samples, signal);
      for (const [id, outcome] of answered) onOutcome(outcome, id);
      missing = missing.filter(({ id }) => !answered.has(id));
      if (missing.length === 0) return;
      const error =
        problem ?? new CoppiceError("COPPICE_EXECUTOR_RESULT", "the result lacks some of the plans");
      if (attempt >= attempts) {
        throw new CoppiceError(error.code, `${error.message} (attempt ${attempt} of ${attempts})`, {
          cause: error,
          hint: "run the command by hand on a request file to see why",
          details: { attempts, plans: missing.length },
        });
      }
      const message = `attempt ${attempt} of ${attempts} for ${missing.length} plans: ${error.message}`;
      emitter?.notify("warn", { code: error.code, message });
      await pause(pauseMs * 2 ** (attempt - 1), signal);
    }
  }

  async #attempt(
    requests: readonly WorkRequest[],
    samples: SampleSet,
    signal: AbortSignal,
  ): Promise<{ answered: Map<string, ParsedOutcome>; problem?: CoppiceError }> {
    const { folder = tmpdir(), timeoutMs, graceMs } = this.#options;
    const answered = new Map<string, ParsedOutcome>();
    const place = await makeFolder(folder);
    const files = { request: join(place, "request.json"), result: join(place, "result.json") };
    try {
      await writeWhole(files.request, { format: "coppice.work", version: workVersion, samples, requests });
      const env = { COPPICE_REQUEST: files.request, COPPICE_RESULT: files.result };
      const words = fillCommand(this.#command, files);
      const end = await runProgram({ words, env, timeoutMs, graceMs, signal });
      const failure = end === undefined ? undefined : this.#failed(end);
      // A command that fails may have answered some plans, or say in its result why it failed.
      if (failure && !existsSync(files.result)) return { answered, problem: failure };
      await this.#settled(files.result, signal);
      const outcomes = await readResultFile(files.result);
      let problem = failure;
      for (const request of requests) {
        if (!outcomes.has(request.id)) continue;
        try {
          answered.set(request.id, parseOutcome(outcomes.get(request.id), request));
        } catch (error) {
          if (!isCoppiceError(error)) throw error;
          problem ??= error;
        }
      }
      return { answered, ...(problem && { problem }) };
    } catch (error) {
      if (!isCoppiceError(error)) throw error;
      // What another attempt cannot change.
      if (/^COPPICE_(ABORTED|EXECUTOR_UNREACHABLE|EXECUTOR_FOREIGN|IO_WRITE)$/.test(error.code)) throw error;
      return { answered, problem: error };
    } finally {
      await rm(place, { recursive: true, force: true });
    }
  }

  #failed(end: string): CoppiceError {
    return new CoppiceError("COPPICE_EXECUTOR_FAILED", `the command ${this.#command[0]} failed: ${end}`);
  }

  async #settled(path: string, signal: AbortSignal): Promise<void> {
    const until = performance.now() + this.#options.settleMs;
    while (!existsSync(path)) {
      if (performance.now() > until) {
        throw new CoppiceError(
          "COPPICE_EXECUTOR_RESULT",
          `the command ${this.#command[0]} wrote no result to ${path}`,
        );
      }
      await pause(100, signal);
    }
  }

  async dispose(): Promise<void> {
    this.#ending.abort();
    await Promise.all(this.#running);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose();
  }
}

async function makeFolder(parent: string): Promise<string> {
  try {
    await mkdir(parent, { recursive: true });
    return await mkdtemp(join(parent, "coppice-work-"));
  } catch (cause) {
    throw new CoppiceError(
      "COPPICE_IO_WRITE",
      `${parent} cannot be written to: ${(cause as Error).message}`,
      { cause },
    );
  }
}

function pause(milliseconds: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(abortedError(signal, "waiting for commands"));
    };
    const timer = setTimeout(() => {
      signal.removeEventListener("abort", stop);
      resolve();
    }, milliseconds);
    if (signal.aborted) stop();
    else signal.addEventListener("abort", stop, { once: true });
  });
}

function disposed(): CoppiceError {
  return new CoppiceError("COPPICE_BACKEND_DISPOSED", "the executor was used after its disposal");
}
