import { CoppiceError, disposedRunner } from "@coppice/core";
import { encodeModel, type Graph } from "@coppice/onnx";
import type { InferenceSession, Tensor } from "onnxruntime-node";

export type Runtime = typeof import("onnxruntime-node");
export type Feeds = Readonly<Record<string, Tensor>>;

/** @throws COPPICE_BACKEND_UNAVAILABLE when the native library cannot be loaded */
export async function loadRuntime(): Promise<Runtime> {
  try {
    return await import("onnxruntime-node");
  } catch (cause) {
    throw new CoppiceError(
      "COPPICE_BACKEND_UNAVAILABLE",
      `onnxruntime-node does not load on ${process.platform}-${process.arch}: ${messageOf(cause)}`,
      {
        cause,
        hint: "install onnxruntime-node; where its CUDA download is blocked, set ONNXRUNTIME_NODE_INSTALL=skip first",
      },
    );
  }
}

/**
 * The sessions of one runner, each made on first use. Graphs hold no weights, so their number is that of the
 * different shapes, and making one takes a millisecond or two.
 */
export class Sessions {
  readonly #runtime: Runtime;
  readonly #threads: number;
  readonly #sessions = new Map<string, Promise<InferenceSession>>();
  #disposed = false;

  constructor(runtime: Runtime, threads: number) {
    this.#runtime = runtime;
    this.#threads = threads;
  }

  get count(): number {
    return this.#sessions.size;
  }

  /**
   * Runs the graph that `key` names.
   * @param into tensors that receive outputs in place; other outputs are allocated
   * @throws COPPICE_BACKEND_FAILED
   */
  async run(
    key: string,
    graph: () => Graph,
    feeds: Feeds,
    into: Feeds = {},
  ): Promise<InferenceSession.ReturnType> {
    if (this.#disposed) throw disposedRunner();
    let session = this.#sessions.get(key);
    if (!session) {
      session = this.#create(graph());
      this.#sessions.set(key, session);
    }
    try {
      const { outputNames } = await session;
      const fetches = Object.fromEntries(outputNames.map((name) => [name, into[name] ?? null]));
      return await (await session).run(feeds, fetches);
    } catch (cause) {
      throw new CoppiceError("COPPICE_BACKEND_FAILED", `ONNX Runtime failed in ${key}: ${messageOf(cause)}`, {
        cause,
      });
    }
  }

  async dispose(): Promise<void> {
    this.#disposed = true;
    const sessions = [...this.#sessions.values()];
    this.#sessions.clear();
    const opened = await Promise.allSettled(sessions);
    await Promise.all(opened.map((result) => result.status === "fulfilled" && result.value.release()));
  }

  #create(graph: Graph): Promise<InferenceSession> {
    return this.#runtime.InferenceSession.create(encodeModel(graph), {
      intraOpNumThreads: this.#threads,
      interOpNumThreads: 1,
      graphOptimizationLevel: "all",
      // Nearly every run has shapes of its own: a pattern kept for each would grow without end, and an arena of
      // each session would keep the most that any of them took. Without both, runs are as fast.
      enableMemPattern: false,
      enableCpuMemArena: false,
      // Failures arrive as exceptions; the library's own lines on stderr would only double them.
      logSeverityLevel: 4,
      // Threads that spin between runs starve the other sessions: 17 to 32 times slower with sixteen of them.
      extra: { session: { intra_op: { allow_spinning: "0" } } },
    });
  }
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
