import { type ChildProcess, spawn } from "node:child_process";
import { abortedError, CoppiceError } from "@coppice/core";

export interface RunProgramOptions {
  readonly words: readonly string[];
  readonly env: Readonly<Record<string, string>>;
  readonly timeoutMs: number;
  /** Time between asking a group of processes to end and ending it. */
  readonly graceMs: number;
  readonly signal: AbortSignal;
}

/** How a program ended: undefined when well, else in words. */
export type ProgramEnd = string | undefined;

/** Characters kept of what a program wrote, to explain its end. */
const keptOutput = 2_000;
const windows = process.platform === "win32";

/**
 * Runs a program in a process group of its own and waits for its end. A timeout or an abort ends the whole group, so
 * also what the program started.
 * @throws COPPICE_EXECUTOR_UNREACHABLE when it cannot be started, COPPICE_ABORTED
 */
export async function runProgram(options: RunProgramOptions): Promise<ProgramEnd> {
  const { words, env, timeoutMs, graceMs, signal } = options;
  const [program = "", ...args] = words;
  if (signal.aborted) throw abortedError(signal, `running ${program}`);
  const child = spawn(program, args, {
    detached: !windows,
    stdio: ["ignore", "pipe", "pipe"],
    env: { ...process.env, ...env },
  });
  let output = "";
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding("utf8").on("data", (text: string) => {
      output = (output + text).slice(-keptOutput);
    });
  }
  let late = false;
  let ended = false;
  let force: NodeJS.Timeout | undefined;
  const stop = () => {
    endGroup(child, "SIGTERM");
    force ??= setTimeout(() => endGroup(child, "SIGKILL"), graceMs);
  };
  const timer = setTimeout(() => {
    late = true;
    stop();
  }, timeoutMs);
  signal.addEventListener("abort", stop, { once: true });
  try {
    const [code, name] = await new Promise<[number | null, string | null]>((resolve, reject) => {
      child.once("error", (error) => {
        if (child.pid !== undefined) return;
        reject(
          new CoppiceError("COPPICE_EXECUTOR_UNREACHABLE", `${program} cannot be started: ${error.message}`, {
            cause: error,
            hint: "give the path of a program that can be executed, and its arguments one by one",
            details: { command: words },
          }),
        );
      });
      child.once("exit", () => {
        ended = true;
        // What the program left running keeps its output open; it has no owner any more.
        if (late || signal.aborted) endGroup(child, "SIGKILL");
      });
      child.once("close", (...how) => resolve(how));
    });
    if (signal.aborted) throw abortedError(signal, `running ${program}`);
    if (late) return explain(`it took longer than ${(timeoutMs / 1000).toFixed(0)} s`, output);
    if (code === 0) return undefined;
    return explain(name === null ? `exit code ${code}` : `signal ${name}`, output);
  } finally {
    clearTimeout(timer);
    clearTimeout(force);
    signal.removeEventListener("abort", stop);
    if (!ended) endGroup(child, "SIGKILL");
  }
}

/** Signals the group that the child leads: only processes that were started from here. */
function endGroup(child: ChildProcess, signal: NodeJS.Signals): void {
  if (child.pid === undefined) return;
  try {
    if (windows) child.kill(signal);
    else process.kill(-child.pid, signal);
  } catch {
    // It is gone already.
  }
}

function explain(reason: string, output: string): string {
  const text = output.trim();
  return text === "" ? reason : `${reason}; it wrote: ${text}`;
}
