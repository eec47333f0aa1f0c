import { type ChildProcess, fork } from "node:child_process";
import { fileURLToPath } from "node:url";
import { Worker } from "node:worker_threads";
import type { FromWorker, ToWorker } from "./protocol.js";

/**
 * What a worker is. A process of its own (the default) survives nothing of the others: a native library that crashes
 * or runs out of memory ends that process only, and a running computation can be killed at once. A thread starts
 * faster and takes some 40 MB less, but a native crash ends the whole program.
 */
export type Isolation = "process" | "thread";

/** A running worker, as its owner sees it. */
export interface WorkerPort {
  send(message: ToWorker): void;
  /** Ends it, whatever it does; resolves when it is gone. */
  kill(): Promise<void>;
}

export interface PortListener {
  onMessage(message: FromWorker): void;
  /** Called once when it ends, wanted or not, with what is known of the reason. */
  onExit(reason: string): void;
}

const entry = new URL("./worker.js", import.meta.url);
/** Characters kept of what a worker wrote to stderr, to explain its end. */
const keptOutput = 2_000;

export function startWorker(isolation: Isolation, listener: PortListener): WorkerPort {
  return isolation === "process" ? startProcess(listener) : startThread(listener);
}

function startProcess(listener: PortListener): WorkerPort {
  // Options of this process (a loader, an inspector) are not the worker's; its stdout carries nothing.
  const child: ChildProcess = fork(fileURLToPath(entry), [], {
    execArgv: [],
    serialization: "advanced",
    stdio: ["ignore", "ignore", "pipe", "ipc"],
  });
  const output = tail(child.stderr);
  const gone = new Promise<void>((resolve) => {
    let over = false;
    const end = (reason: string) => {
      if (over) return;
      over = true;
      listener.onExit(explain(reason, output()));
      resolve();
    };
    // "close" comes after "exit", when stderr has been read to its end.
    child.once("close", (code, signal) => end(signal ? `signal ${signal}` : `exit code ${code}`));
    child.once("error", (error) => {
      // A process that could not be started never closes.
      if (child.pid === undefined) end(error.message);
    });
  });
  child.on("message", (message) => listener.onMessage(message as FromWorker));
  return {
    // A broken channel shows as the end of the process, which is reported there.
    send: (message) => void child.send(message, () => {}),
    kill: () => {
      child.kill("SIGKILL");
      return gone;
    },
  };
}

function startThread(listener: PortListener): WorkerPort {
  const thread = new Worker(entry, { execArgv: [], stdout: true, stderr: true });
  // Reading keeps the streams flowing; a thread's stdout carries nothing.
  tail(thread.stdout);
  const output = tail(thread.stderr);
  let failure: string | undefined;
  thread.on("error", (error) => {
    failure = error instanceof Error ? error.message : String(error);
  });
  const gone = new Promise<void>((resolve) => {
    thread.once("exit", (code) => {
      listener.onExit(explain(failure ?? `exit code ${code}`, output()));
      resolve();
    });
  });
  thread.on("message", (message) => listener.onMessage(message as FromWorker));
  return {
    send: (message) => thread.postMessage(message),
    kill: async () => {
      await thread.terminate();
      await gone;
    },
  };
}

function tail(stream: NodeJS.ReadableStream | null): () => string {
  let text = "";
  stream?.setEncoding("utf8");
  stream?.on("data", (chunk) => {
    text = (text + String(chunk)).slice(-keptOutput);
  });
  return () => text.trim();
}

function explain(reason: string, output: string): string {
  return output === "" ? reason : `${reason}; it wrote: ${output}`;
}
