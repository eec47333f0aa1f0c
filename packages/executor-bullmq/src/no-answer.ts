import { CoppiceError } from "@coppice/core";

export interface Silence {
  /** Queue and address, in words. */
  readonly where: string;
  readonly milliseconds: number;
  /** Plans that wait. */
  readonly waiting: number;
  /** Worker -> why it refused. */
  readonly refusals: ReadonlyMap<string, string>;
}

/** What is told when no worker shows a sign of life: those that came may have refused. */
export function noAnswer({ where, milliseconds, waiting, refusals }: Silence): CoppiceError {
  if (refusals.size > 0) {
    const told = [...refusals].map(([worker, text]) => `${worker}: ${text}`);
    return new CoppiceError(
      "COPPICE_EXECUTOR_FOREIGN",
      `every worker of ${where} refused the work: ${told.join("; ")}`,
      {
        hint: "start workers with the model, the backend and the release of the search",
        details: { refusals: told },
      },
    );
  }
  return new CoppiceError(
    "COPPICE_EXECUTOR_TIMEOUT",
    `no worker of ${where} answered for ${(milliseconds / 1000).toFixed(0)} s; ${waiting} plans wait`,
    { retryable: true, hint: "start `coppice worker` with this model and this queue" },
  );
}
