import type { Plan, Scored } from "@coppice/core";

export interface Proposal {
  readonly plan: Plan;
  readonly origin: string;
  /** See `Candidate.probe`. */
  readonly probe?: boolean;
  /** See `Candidate.rival`. */
  readonly rival?: string;
}

/** One part of the default search. */
export interface Phase {
  /** Up to `limit` plans; none when the phase is over. */
  propose(limit: number): Proposal[];
  /** Results of the last proposals, in their order. */
  learn(results: readonly Scored[]): void;
}
