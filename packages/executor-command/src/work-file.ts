import {
  CoppiceError,
  isCoppiceError,
  reviveError,
  type SerializedError,
  throwIfAborted,
} from "@coppice/core";
import { readTextBounded, writeFileAtomic } from "@coppice/core/node";
import {
  type SampleSet,
  type WorkOutcome,
  type WorkRequest,
  type WorkServer,
  workVersion,
} from "@coppice/evaluate";

/** Most bytes of a request or result file: far above a batch of any model, far below the memory of any machine. */
const mostBytes = 2 ** 29;

/** A batch as a file. */
export interface RequestFile {
  readonly format: "coppice.work";
  readonly version: typeof workVersion;
  readonly samples: SampleSet;
  readonly requests: readonly WorkRequest[];
}

/** The answers to a batch, in any order. */
export interface ResultFile {
  readonly format: "coppice.outcomes";
  readonly version: typeof workVersion;
  readonly outcomes: readonly WorkOutcome[];
  /** Why nothing could be answered. */
  readonly error?: SerializedError;
}

export interface AnswerFileOptions {
  /** Path of the request file. */
  readonly request: string;
  /** Path of the result file; it appears whole or not at all. */
  readonly result: string;
  readonly server: WorkServer;
  readonly signal?: AbortSignal;
  /** Told after every answer. */
  readonly onAnswer?: (done: number, total: number) => void;
}

/**
 * Answers a request file: what the program at the other end of a command does. Work for another model, backend or
 * release is refused in the result file and by an error.
 * @throws COPPICE_EXECUTOR_FOREIGN, COPPICE_IO_READ, COPPICE_IO_WRITE, COPPICE_ABORTED
 */
export async function answerWorkFile(options: AnswerFileOptions): Promise<number> {
  const { request: path, result, server, signal, onAnswer } = options;
  const outcomes: WorkOutcome[] = [];
  const write = (error?: SerializedError) =>
    writeWhole(result, {
      format: "coppice.outcomes",
      version: workVersion,
      outcomes,
      ...(error && { error }),
    });
  try {
    const { samples, requests } = readRequests(await readJson(path), path);
    for (const request of requests) {
      throwIfAborted(signal, "answering a request file");
      outcomes.push(await server.answer(request, async () => samples.text, signal ? { signal } : {}));
      onAnswer?.(outcomes.length, requests.length);
    }
  } catch (error) {
    if (isCoppiceError(error) && error.code !== "COPPICE_ABORTED") await write(error.toJSON());
    throw error;
  }
  await write();
  return outcomes.length;
}

function readRequests(value: unknown, path: string): Pick<RequestFile, "samples" | "requests"> {
  const file = (typeof value === "object" && value !== null ? value : {}) as Partial<RequestFile>;
  const { samples, requests } = file;
  if (
    file.format !== "coppice.work" ||
    file.version !== workVersion ||
    typeof samples?.text !== "string" ||
    !Array.isArray(requests)
  ) {
    throw new CoppiceError(
      "COPPICE_EXECUTOR_FOREIGN",
      `${path} is no request file of version ${workVersion}: its format is ${JSON.stringify(file.format)}, ` +
        `its version ${JSON.stringify(file.version)}`,
    );
  }
  return { samples, requests };
}

/**
 * Reads a result file: outcomes by the id that they claim; whether they are usable is seen when they are parsed.
 * @throws COPPICE_EXECUTOR_RESULT, COPPICE_IO_READ, and the error of the file
 */
export async function readResultFile(path: string): Promise<Map<string, unknown>> {
  const value = await readJson(path);
  const file = (typeof value === "object" && value !== null ? value : {}) as Partial<ResultFile>;
  if (file.format !== "coppice.outcomes" || file.version !== workVersion || !Array.isArray(file.outcomes)) {
    throw new CoppiceError("COPPICE_EXECUTOR_RESULT", `${path} is no result file of version ${workVersion}`);
  }
  if (file.error && typeof file.error.message === "string") throw reviveError({ ...file.error, details: {} });
  const outcomes = file.outcomes as readonly Partial<WorkOutcome>[];
  return new Map(outcomes.map((outcome) => [String(outcome?.id), outcome]));
}

async function readJson(path: string): Promise<unknown> {
  const text = await readTextBounded(path, { limit: mostBytes, code: "COPPICE_IO_READ" });
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new CoppiceError("COPPICE_EXECUTOR_RESULT", `${path} is not JSON: ${(cause as Error).message}`, {
      cause,
    });
  }
}

/** Writes JSON so that the file is there as a whole or not at all. It is of use to the two processes alone. */
export async function writeWhole(path: string, value: RequestFile | ResultFile): Promise<void> {
  await writeFileAtomic(path, JSON.stringify(value), { durable: false });
}
