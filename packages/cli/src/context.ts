import { setMaxListeners } from "node:events";
import { isAbsolute, relative, resolve } from "node:path";
import type { Readable, Writable } from "node:stream";
import { shellLine } from "./terminal/format.js";
import { Output, type OutputOptions } from "./terminal/output.js";

/** A stream that may be a terminal. */
export type TerminalStream = Writable & { readonly isTTY?: boolean; readonly columns?: number };

/** What a command line sees of the world. */
export interface CliIo {
  readonly stdout: TerminalStream;
  readonly stderr: TerminalStream;
  readonly stdin: Readable & { readonly isTTY?: boolean };
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly cwd: string;
  /** How the user calls this command, for lines to copy. Default "coppice". */
  readonly program?: string;
}

/** One run of the command line: where it reads and writes, and how it ends. */
export class CliContext {
  readonly argv: readonly string[];
  readonly io: CliIo;
  readonly signal: AbortSignal;
  out: Output;
  exitCode = 0;

  constructor(argv: readonly string[], io: CliIo, signal: AbortSignal) {
    this.argv = argv;
    this.io = io;
    this.signal = signal;
    // Every piece of work listens to it; hundreds at once are no leak.
    setMaxListeners(0, signal);
    // Options are not parsed yet, and a failure to parse them is reported too.
    this.out = new Output(io, {
      json: argv.includes("--json"),
      debug: argv.includes("--debug"),
      color: !argv.includes("--no-color"),
    });
  }

  /** Takes the options that every command has. */
  configure(options: OutputOptions): void {
    this.out = new Output(this.io, options);
  }

  /** A path that the user wrote, relative to where they work. */
  path(path: string): string {
    return resolve(this.io.cwd, path);
  }

  /** A path as the user would write it: relative where that is shorter. */
  shown(path: string): string {
    const short = relative(this.io.cwd, path);
    return short === "" || short.startsWith("..") || isAbsolute(short) ? path : short;
  }

  /** A command line that the user can copy. */
  commandLine(...words: readonly string[]): string {
    return `${this.io.program ?? "coppice"} ${shellLine(words)}`;
  }
}
