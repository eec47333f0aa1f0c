import { CoppiceError } from "@coppice/core";
import type { RunJournal } from "./journal.js";

/**
 * Seconds that the rounds of a search took, over all processes that worked on it. They are kept in the journal beside
 * the number of evaluations after each round, so that a run that is replayed stops where it stopped; only the round
 * that a kill interrupts is not counted.
 */
export class SearchClock {
  readonly #journal: RunJournal | undefined;
  /** Evaluations -> seconds. */
  readonly #known = new Map<number, number>();
  #seconds = 0;

  /** @throws COPPICE_RUN_JOURNAL when a record of time is malformed */
  constructor(journal: RunJournal | undefined) {
    this.#journal = journal;
    for (const record of journal?.records ?? []) {
      if (record.type !== "time") continue;
      const { evaluations, seconds } = { ...record } as Record<string, unknown>;
      if (!Number.isSafeInteger(evaluations) || !Number.isFinite(seconds)) {
        throw new CoppiceError(
          "COPPICE_RUN_JOURNAL",
          `a record of time has the evaluations ${JSON.stringify(evaluations)} and the seconds ${JSON.stringify(seconds)}`,
          { hint: "start again in a new run folder" },
        );
      }
      this.#known.set(evaluations as number, seconds as number);
    }
  }

  get seconds(): number {
    return this.#seconds;
  }

  /**
   * Counts a round.
   * @param evaluations of the run, after the round
   * @param seconds that it took; 0 for a round that evaluated nothing
   */
  async count(evaluations: number, seconds: number): Promise<void> {
    const known = this.#known.get(evaluations);
    if (known !== undefined) {
      this.#seconds = known;
      return;
    }
    if (seconds === 0) return;
    this.#seconds += seconds;
    this.#known.set(evaluations, this.#seconds);
    await this.#journal?.append([{ type: "time", evaluations, seconds: this.#seconds }]);
  }
}
