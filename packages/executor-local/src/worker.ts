import { parentPort } from "node:worker_threads";
import { CoppiceError, isCoppiceError, type SerializedError } from "@coppice/core";
import type { FromWorker, Method, ToWorker, WorkerEvent } from "./protocol.js";
import { WorkerSession } from "./worker-session.js";

/** The program of a worker, thread or process: answers the calls of its owner. */
const session = new WorkerSession();
const running = new Map<number, AbortController>();

async function answer(id: number, method: Method, params: unknown): Promise<void> {
  const controller = new AbortController();
  running.set(id, controller);
  try {
    const onEvent = (event: WorkerEvent) => send({ type: "event", id, event });
    const result = await session.call(method, params, { signal: controller.signal, onEvent });
    send({ type: "result", id, result });
  } catch (error) {
    send({ type: "error", id, error: serialize(error) });
  } finally {
    running.delete(id);
  }
}

function receive(message: ToWorker): void {
  if (message.type === "abort") running.get(message.id)?.abort();
  else void answer(message.id, message.method, message.params);
}

function send(message: FromWorker): void {
  if (parentPort) parentPort.postMessage(message);
  else process.send?.(message);
}

function serialize(error: unknown): SerializedError {
  if (isCoppiceError(error)) return error.toJSON();
  const text = error instanceof Error ? (error.stack ?? error.message) : String(error);
  return new CoppiceError("COPPICE_INTERNAL", `a worker failed unexpectedly: ${text}`).toJSON();
}

if (parentPort) {
  parentPort.on("message", receive);
} else {
  process.on("message", receive);
  // Without its owner a worker has no purpose.
  process.on("disconnect", () => process.exit());
  // Ctrl-C reaches every process of the terminal. What it means is the owner's decision.
  process.on("SIGINT", () => {});
}
