import { basename, relative } from "node:path";
import { CommanderError } from "@commander-js/extra-typings";
import { CliContext, type CliIo } from "./context.js";
import { createProgram } from "./program.js";
import { reportError } from "./terminal/report-error.js";

export type { CliIo } from "./context.js";

/**
 * Runs one command line and resolves with its exit code; never rejects.
 * @param argv words after `coppice`
 * @param signal stops the command; it saves what it can and the exit code is 130
 */
export async function runCli(argv: readonly string[], io: CliIo, signal?: AbortSignal): Promise<number> {
  const context = new CliContext(argv, io, signal ?? new AbortController().signal);
  try {
    const program = await createProgram(context);
    await program.parseAsync([...argv], { from: "user" });
    return context.exitCode;
  } catch (error) {
    if (error instanceof CommanderError && error.exitCode === 0) return 0;
    return reportError(error, context);
  } finally {
    context.out.close();
  }
}

/** `runCli` for a whole process: signals, closed pipes, and an end that waits for its output only. */
export async function runProcess(process: NodeJS.Process): Promise<void> {
  const controller = new AbortController();
  const stop = (signal: NodeJS.Signals) => {
    if (controller.signal.aborted) process.exit(130);
    controller.abort(new Error(signal));
    process.stderr.write("\nStopping after the work in hand is saved. Press Ctrl-C again to quit at once.\n");
  };
  process.on("SIGINT", stop);
  process.on("SIGTERM", stop);
  // A reader such as `head` may close the pipe early; that is its right and no failure.
  for (const stream of [process.stdout, process.stderr]) {
    stream.on("error", (error: NodeJS.ErrnoException) => process.exit(error.code === "EPIPE" ? 0 : 1));
  }
  const { stdout, stderr, stdin, env } = process;
  const io = { stdout, stderr, stdin, env, cwd: process.cwd(), program: programName(process) };
  const code = await runCli(process.argv.slice(2), io, controller.signal);
  await Promise.all(
    [stdout, stderr].map((stream) => new Promise<void>((done) => stream.write("", () => done()))),
  );
  // Native libraries may keep threads that would hold the process; everything of ours is closed by now.
  process.exit(code);
}

/** `coppice` when it was started by that name, else the way to start this file again. */
function programName(process: NodeJS.Process): string {
  const script = process.argv[1] ?? "";
  return basename(script) === "bin.js" ? `node ${relative(process.cwd(), script)}` : "coppice";
}
