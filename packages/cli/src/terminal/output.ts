import { intro } from "@clack/prompts";
import type { RunEmitter } from "@coppice/core";
import pc from "picocolors";
import type { CliIo, TerminalStream } from "../context.js";
import { JsonProgress, LiveProgress, PlainProgress, type ProgressView } from "./progress.js";

export interface OutputOptions {
  readonly json?: boolean;
  readonly quiet?: boolean;
  readonly debug?: boolean;
  readonly logFormat?: "text" | "json";
  /** False after --no-color. */
  readonly color?: boolean;
}

export type Colors = ReturnType<typeof pc.createColors>;

/** Everything a command writes: data to stdout; messages, warnings and progress to stderr. */
export class Output {
  readonly json: boolean;
  readonly debug: boolean;
  readonly #io: CliIo;
  readonly #quiet: boolean;
  readonly #jsonLog: boolean;
  /** Colours of stdout and stderr; each may be a terminal or not. */
  readonly colors: Colors;
  readonly #errorColors: Colors;
  readonly #view: ProgressView | undefined;
  #written = false;

  constructor(io: CliIo, options: OutputOptions) {
    this.#io = io;
    this.json = options.json ?? false;
    this.debug = options.debug ?? Boolean(io.env["COPPICE_DEBUG"]);
    this.#quiet = options.quiet ?? false;
    this.#jsonLog = options.logFormat === "json";
    const color = options.color ?? true;
    this.colors = pc.createColors(color && wantsColor(io.stdout, io.env));
    this.#errorColors = pc.createColors(color && wantsColor(io.stderr, io.env));
    if (this.#quiet) this.#view = undefined;
    else if (this.#jsonLog) this.#view = new JsonProgress((text) => io.stderr.write(text));
    else if (io.stderr.isTTY && !io.env["CI"]) this.#view = new LiveProgress(io.stderr, this.#errorColors);
    else this.#view = new PlainProgress((text) => io.stderr.write(text));
  }

  /** True once `result` printed, so that an error after it does not print a second object. */
  get written(): boolean {
    return this.#written;
  }

  /** The outcome: one JSON object under --json, else text for people. Values that JSON lacks become null. */
  result(data: Readonly<Record<string, unknown>>, text: () => string): void {
    this.#view?.clear();
    this.#written = true;
    this.#io.stdout.write(this.json ? `${toJson(data)}\n` : `${text()}\n`);
  }

  /** A piece of the outcome that appears while it is made, such as generated text; nothing under --json. */
  stream(text: string): void {
    if (this.json) return;
    this.#view?.clear();
    this.#io.stdout.write(text);
  }

  /** A message on stderr that --quiet silences. */
  note(text: string): void {
    if (this.#quiet) return;
    this.#log({ event: "note", message: text }, text);
  }

  /** A heading that --quiet silences. */
  begin(title: string): void {
    if (this.#view instanceof LiveProgress) intro(title, { output: this.#io.stderr });
    else this.note(title);
  }

  warn(text: string): void {
    this.#log({ event: "warn", message: text }, `${this.#errorColors.yellow("warning")} ${text}`);
  }

  error(data: Readonly<Record<string, unknown>>, text: (colors: Colors) => string): void {
    this.#log({ event: "error", ...data }, text(this.#errorColors));
  }

  /** Shows the progress and warnings of a run. */
  follow(emitter: RunEmitter): void {
    const view = this.#view;
    if (view) {
      emitter.on("progress", (progress) => view.progress(progress));
      emitter.on("candidate", (candidate) => view.candidate(candidate));
    }
    emitter.on("warn", ({ message }) => this.warn(message));
  }

  /** Finishes the progress display of a stage, so that what follows starts on its own line. */
  settle(): void {
    this.#view?.settle();
  }

  close(): void {
    this.#view?.clear();
  }

  #log(data: Readonly<Record<string, unknown>>, text: string): void {
    this.#view?.clear();
    this.#io.stderr.write(this.#jsonLog ? `${toJson(data)}\n` : `${text}\n`);
  }
}

function wantsColor(stream: TerminalStream, env: CliIo["env"]): boolean {
  if (env["NO_COLOR"]) return false;
  if (env["FORCE_COLOR"]) return env["FORCE_COLOR"] !== "0";
  return Boolean(stream.isTTY) && env["TERM"] !== "dumb";
}

/** Typed arrays become arrays; NaN and infinities, which JSON lacks, become null. */
export function toJson(data: unknown): string {
  return JSON.stringify(data, (_, value) =>
    ArrayBuffer.isView(value) && !(value instanceof DataView)
      ? Array.from(value as unknown as number[])
      : value,
  );
}
