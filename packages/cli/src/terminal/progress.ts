import { clearLine, cursorTo } from "node:readline";
import type { CandidateScored, Progress } from "@coppice/core";
import type { TerminalStream } from "../context.js";
import { formatDuration, formatWork } from "./format.js";
import type { Colors } from "./output.js";

/** How the progress of a run is shown. */
export interface ProgressView {
  progress(progress: Progress): void;
  candidate(candidate: CandidateScored): void;
  /** Leaves the last state standing. */
  settle(): void;
  /** Takes away what is not a finished line. */
  clear(): void;
}

/** Milliseconds between two drawings of the live line: smooth to the eye, no load on the terminal. */
const frameMs = 80;
/** Milliseconds between two lines of a log that nobody watches. */
const lineMs = 5000;
const jsonMs = 1000;
const barWidth = 20;

/** Time left, from the run itself or from the pace of the stage so far. */
class Pace {
  #stage = "";
  #startedAt = 0;
  #startedDone = 0;

  left(progress: Progress): number | undefined {
    if (progress.stage !== this.#stage) {
      this.#stage = progress.stage;
      this.#startedAt = performance.now();
      this.#startedDone = progress.done;
    }
    if (progress.etaMs !== undefined) return progress.etaMs;
    const done = progress.done - this.#startedDone;
    const elapsed = performance.now() - this.#startedAt;
    // The first moments say little about the rest.
    if (done <= 0 || elapsed < 500) return undefined;
    return (elapsed / done) * (progress.total - progress.done);
  }
}

function describe(progress: Progress, left: number | undefined): string {
  return [
    formatWork(progress.done, progress.total, progress.unit),
    ...(progress.note ? [progress.note] : []),
    ...(left !== undefined && progress.done < progress.total ? [`${formatDuration(left)} left`] : []),
  ].join(", ");
}

/**
 * One line that is redrawn. Not the progress bar of @clack/prompts: while that runs it puts the terminal into raw
 * mode and ends the process with code 0 at Ctrl-C, where a search must save and end with 130.
 */
export class LiveProgress implements ProgressView {
  readonly #stream: TerminalStream;
  readonly #colors: Colors;
  readonly #pace = new Pace();
  #drawnAt = 0;
  #shown = false;
  #last: Progress | undefined;

  constructor(stream: TerminalStream, colors: Colors) {
    this.#stream = stream;
    this.#colors = colors;
  }

  progress(progress: Progress): void {
    if (this.#last && this.#last.stage !== progress.stage) this.settle();
    this.#last = progress;
    const now = performance.now();
    const left = this.#pace.left(progress);
    if (now - this.#drawnAt < frameMs && progress.done < progress.total) return;
    this.#drawnAt = now;
    this.#draw(progress, left);
  }

  candidate(): void {}

  settle(): void {
    if (this.#last) this.#draw(this.#last, undefined);
    if (this.#shown) this.#stream.write("\n");
    this.#shown = false;
    this.#last = undefined;
  }

  clear(): void {
    if (!this.#shown) return;
    clearLine(this.#stream, 0);
    cursorTo(this.#stream, 0);
    this.#shown = false;
  }

  #draw(progress: Progress, left: number | undefined): void {
    const share = progress.total > 0 ? Math.min(1, progress.done / progress.total) : 0;
    const filled = Math.round(share * barWidth);
    const head = `${progress.stage} `;
    const bar = "█".repeat(filled) + "░".repeat(barWidth - filled);
    const width = Math.max(20, (this.#stream.columns ?? 80) - 1);
    const tail = ` ${describe(progress, left)}`;
    const room = width - head.length - tail.length;
    const line =
      room >= barWidth
        ? `${head}${this.#colors.green(bar)}${tail}`
        : `${head}${tail.trimStart()}`.slice(0, width);
    clearLine(this.#stream, 0);
    cursorTo(this.#stream, 0);
    this.#stream.write(line);
    this.#shown = true;
  }
}

/** Lets through the first and last progress of a stage, and between them one per interval. */
class LineRate {
  readonly #everyMs: number;
  #stage = "";
  #writtenAt = 0;

  constructor(everyMs: number) {
    this.#everyMs = everyMs;
  }

  due({ stage, done, total }: Progress): boolean {
    const now = performance.now();
    const first = stage !== this.#stage;
    if (!first && done < total && now - this.#writtenAt < this.#everyMs) return false;
    this.#stage = stage;
    this.#writtenAt = now;
    return true;
  }
}

/** Whole lines at a modest rate, for logs and pipes. */
export class PlainProgress implements ProgressView {
  readonly #write: (text: string) => void;
  readonly #pace = new Pace();
  readonly #rate = new LineRate(lineMs);

  constructor(write: (text: string) => void) {
    this.#write = write;
  }

  progress(progress: Progress): void {
    const left = this.#pace.left(progress);
    if (!this.#rate.due(progress)) return;
    this.#write(`${progress.stage}: ${describe(progress, left)}\n`);
  }

  candidate(): void {}
  settle(): void {}
  clear(): void {}
}

/** One JSON object per line, for programs that watch a run. */
export class JsonProgress implements ProgressView {
  readonly #write: (text: string) => void;
  readonly #pace = new Pace();
  readonly #rate = new LineRate(jsonMs);

  constructor(write: (text: string) => void) {
    this.#write = write;
  }

  progress(progress: Progress): void {
    const left = this.#pace.left(progress);
    if (!this.#rate.due(progress)) return;
    this.#write(`${JSON.stringify({ event: "progress", ...progress, etaMs: left })}\n`);
  }

  candidate(candidate: CandidateScored): void {
    this.#write(`${JSON.stringify({ event: "candidate", ...candidate })}\n`);
  }

  settle(): void {}
  clear(): void {}
}
