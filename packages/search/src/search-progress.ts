import type { RunEmitter, Scored } from "@coppice/core";

/** Share of the newest batch in the running estimate of an evaluation's duration. */
const newestShare = 0.3;

/** Turns what the engine does into `progress` and `candidate` events. */
export class SearchProgress {
  readonly #emitter: RunEmitter | undefined;
  readonly #total: number;
  #millisecondsEach: number | undefined;

  constructor(emitter: RunEmitter | undefined, total: number) {
    this.#emitter = emitter;
    this.#total = total;
  }

  /** `count` plans were really evaluated in `milliseconds`; replayed ones would spoil the estimate. */
  worked(count: number, milliseconds: number): void {
    if (count === 0) return;
    const each = milliseconds / count;
    const previous = this.#millisecondsEach;
    this.#millisecondsEach = previous === undefined ? each : previous + newestShare * (each - previous);
  }

  /** @param leftMs milliseconds of the time budget that are left; Infinity without one */
  scored(scored: Scored, evaluation: number, best: Scored | undefined, leftMs: number): void {
    if (!this.#emitter) return;
    const { phase, origin } = scored.candidate;
    this.#emitter.notify("candidate", {
      evaluation,
      key: scored.key,
      phase,
      origin,
      fitness: scored.fitness,
      best: best?.fitness ?? Number.NEGATIVE_INFINITY,
      cached: scored.cached,
    });
    if (scored.cached) return;
    const each = this.#millisecondsEach;
    this.#emitter.notify("progress", {
      stage: `searching (${phase})`,
      done: evaluation,
      total: this.#total,
      unit: "evaluations",
      ...(each !== undefined && { etaMs: Math.max(0, Math.min(leftMs, each * (this.#total - evaluation))) }),
      ...(best && { note: `best ${best.fitness.toFixed(4)}` }),
    });
  }
}
