import { CoppiceError } from "@coppice/core";
import { addStatistics, type CollectedStatistics } from "./collected-statistics.js";

/** Statistics of one part of the data. */
export interface CollectedPart {
  readonly part: number;
  /** How many there are. */
  readonly parts: number;
  /** With the whole data as its source. */
  readonly statistics: CollectedStatistics;
}

/** Adds up parts in their order, whatever order they come in, so that sums are the same bits. */
export class PartSum {
  #sum: CollectedStatistics | undefined;
  #next = 0;
  #parts = 0;
  /** Parts that came before their turn. */
  readonly #early = new Map<number, CollectedStatistics>();

  /** A part that was added before is left out. */
  add({ part, parts, statistics }: CollectedPart): void {
    this.#parts = parts;
    if (part >= this.#next) this.#early.set(part, statistics);
    for (;;) {
      const next = this.#early.get(this.#next);
      if (!next) return;
      this.#early.delete(this.#next++);
      this.#sum = this.#sum ? addStatistics(this.#sum, next) : next;
    }
  }

  /** The statistics of all parts. */
  result(): CollectedStatistics {
    if (this.#sum && this.#next === this.#parts) return this.#sum;
    throw new CoppiceError(
      "COPPICE_INTERNAL",
      `${this.#next} of ${this.#parts} parts of the data were summed`,
    );
  }
}
