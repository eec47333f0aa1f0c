import { type RunResult, throwIfAborted } from "@coppice/core";

/** A run that waits to be computed together with others. */
export interface Waiting<J> {
  readonly job: J;
  readonly signal: AbortSignal | undefined;
  resolve(result: RunResult): void;
  reject(error: unknown): void;
}

export interface QueueWork<J> {
  /** Size of a job; jobs of more than `most` together are not computed together. */
  size(job: J): number;
  readonly most: number;
  /** How many of the first jobs are computed together; at least 1. */
  together(jobs: readonly J[]): number;
  /** Records and submits jobs. @returns their results once the device has them */
  record(jobs: readonly J[]): Promise<() => Promise<RunResult[]>>;
}

/** Groups that are under way at once: one is computed while another is recorded or its results are on their way. */
const depth = 2;

/**
 * Runs of one runner in the order in which they came. Those that can be computed together wait for the end of the turn, unless
 * they fill a group before, and for groups before them; others have the device for themselves while they are recorded.
 */
export class RunQueue<J> {
  readonly #work: QueueWork<J>;
  readonly #waiting: Waiting<J>[] = [];
  #last: Promise<unknown> = Promise.resolve();
  readonly #underWay = new Set<Promise<void>>();
  /** Of the jobs that wait. */
  #size = 0;
  #isScheduled = false;

  constructor(work: QueueWork<J>) {
    this.#work = work;
  }

  add(job: J, signal: AbortSignal | undefined): Promise<RunResult> {
    return new Promise((resolve, reject) => {
      this.#waiting.push({ job, signal, resolve, reject });
      this.#size += this.#work.size(job);
      if (this.#size > this.#work.most) this.#next(this.#work.most);
      if (this.#isScheduled) return;
      this.#isScheduled = true;
      // Whoever has several runs to ask for asks for them in this turn.
      later(() => {
        this.#isScheduled = false;
        this.#next();
      });
    });
  }

  /** Work that nothing may be recorded besides. */
  alone<T>(work: () => Promise<T>): Promise<T> {
    const turn = this.#last.then(work);
    this.#last = turn.catch(() => {});
    return turn;
  }

  /** Refuses what waits. @returns once nothing is under way */
  async end(error: unknown): Promise<void> {
    for (const { reject } of this.#waiting.splice(0)) reject(error);
    this.#size = 0;
    await Promise.all([this.#last, ...this.#underWay]);
  }

  /** @param left jobs of no more than this size stay for now */
  #next(left = 0): void {
    while (this.#underWay.size < depth && this.#size > left) {
      const count = this.#work.together(this.#waiting.map(({ job }) => job));
      const group = this.#waiting.splice(0, count);
      for (const { job } of group) this.#size -= this.#work.size(job);
      const run = this.#run(group).then(() => {
        this.#underWay.delete(run);
        this.#next();
      });
      this.#underWay.add(run);
    }
  }

  async #run(group: readonly Waiting<J>[]): Promise<void> {
    const live = group.filter(({ signal, reject }) => {
      try {
        throwIfAborted(signal, "waiting for a run");
        return true;
      } catch (error) {
        reject(error);
        return false;
      }
    });
    if (live.length === 0) return;
    try {
      const read = await this.alone(() => this.#work.record(live.map(({ job }) => job)));
      const results = await read();
      live.forEach(({ resolve }, i) => {
        resolve(results[i] as RunResult);
      });
    } catch (error) {
      for (const { reject } of live) reject(error);
    }
  }
}

/** At the end of the turn; browsers have no `setImmediate`. */
const later = (work: () => void): void => {
  if (typeof setImmediate === "function") setImmediate(work);
  else setTimeout(work, 0);
};
