import { type ChildProcess, spawn } from "node:child_process";
import { Writable } from "node:stream";
import { fileURLToPath } from "node:url";
import { runCli } from "coppice";

const bin = fileURLToPath(new URL("../dist/bin.js", import.meta.url));

export interface Finished {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
  /** stdout as one JSON value; throws when it is anything else. */
  json(): Record<string, unknown>;
}

export interface CliOptions {
  readonly cwd?: string;
  readonly env?: Readonly<Record<string, string>>;
}

/** Starts the command as a person would; `done` resolves when it ends. */
export function start(
  args: readonly string[],
  options: CliOptions = {},
): { child: ChildProcess; done: Promise<Finished> } {
  const { COPPICE_DEBUG: _, FORCE_COLOR: __, ...env } = process.env;
  const child = spawn(process.execPath, [bin, ...args], {
    cwd: options.cwd,
    env: { ...env, ...options.env },
    stdio: ["ignore", "pipe", "pipe"],
  });
  let stdout = "";
  let stderr = "";
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    stdout += text;
  });
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    stderr += text;
  });
  const done = new Promise<Finished>((resolve, reject) => {
    child.on("error", reject);
    child.on("close", (code, signal) => {
      resolve({ code, signal, stdout, stderr, json: () => JSON.parse(stdout) as Record<string, unknown> });
    });
  });
  return { child, done };
}

export function coppice(args: readonly string[], options?: CliOptions): Promise<Finished> {
  return start(args, options).done;
}

/** The command in this process: the same code without the time that Node takes to start. */
export async function coppiceHere(args: readonly string[]): Promise<Finished> {
  const sink = () => {
    const texts: string[] = [];
    const stream = new Writable({
      write(chunk, _, done) {
        texts.push(String(chunk));
        done();
      },
    });
    return { stream, text: () => texts.join("") };
  };
  const [stdout, stderr] = [sink(), sink()];
  const io = {
    stdout: stdout.stream,
    stderr: stderr.stream,
    stdin: process.stdin,
    env: {},
    cwd: process.cwd(),
  };
  const code = await runCli(args, io);
  const finished = { code, signal: null, stdout: stdout.text(), stderr: stderr.text() };
  return { ...finished, json: () => JSON.parse(finished.stdout) as Record<string, unknown> };
}

/** Runs with --json, expects success and gives the object. */
export async function coppiceJson(args: readonly string[], options?: CliOptions) {
  const finished = await (options ? coppice([...args, "--json"], options) : coppiceHere([...args, "--json"]));
  if (finished.code !== 0)
    throw new Error(`${args.join(" ")} ended with ${finished.code}: ${finished.stderr}`);
  return finished.json();
}
