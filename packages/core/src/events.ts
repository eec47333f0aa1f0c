import { EventEmitter } from "eventemitter3";

export interface Progress {
  /** What is being done, in words: "searching", "writing shards". */
  stage: string;
  done: number;
  total: number;
  /** What `done` counts: "evaluations", "bytes", "samples". */
  unit: string;
  /** Estimated milliseconds left; undefined until there is something to estimate from. */
  etaMs?: number;
  /** A short word on the latest state, such as the best score so far. */
  note?: string;
}

export interface CandidateScored {
  /** Number of candidates scored so far, this one included; cached ones do not count. */
  evaluation: number;
  key: string;
  phase: string;
  origin: string;
  fitness: number;
  best: number;
  cached: boolean;
}

export interface Warning {
  code: string;
  message: string;
}

export interface Artifact {
  /** "plan", "report", "checkpoint", "journal" ... */
  kind: string;
  path: string;
}

/** Notifications of a run. Listeners observe; they cannot change or break the run. */
export interface RunEvents {
  progress: (progress: Progress) => void;
  candidate: (candidate: CandidateScored) => void;
  warn: (warning: Warning) => void;
  artifact: (artifact: Artifact) => void;
}

/**
 * The typed emitter of one run. A listener that throws does not end the run: its error becomes one `warn`.
 */
export class RunEmitter extends EventEmitter<RunEvents> {
  notify<E extends keyof RunEvents>(event: E, ...args: Parameters<RunEvents[E]>): void {
    for (const listener of this.listeners(event)) {
      try {
        (listener as (...values: Parameters<RunEvents[E]>) => void)(...args);
      } catch (error) {
        // A failing "warn" listener has nowhere left to report to.
        if (event === "warn") continue;
        const message = error instanceof Error ? error.message : String(error);
        this.notify("warn", {
          code: "listener",
          message: `a listener of "${event}" threw: ${message}`,
        });
      }
    }
  }
}
