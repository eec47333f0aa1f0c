import { type MergeRequest, startProgress, throwIfAborted } from "@coppice/core";

export interface Steps {
  /** What is being done, in words. */
  readonly stage: string;
  /** What is counted. */
  readonly unit: string;
  readonly total: number;
}

/**
 * To be called after every step of work that takes long: tells progress, lets other work have its turn and looks at the
 * signal.
 * @throws COPPICE_ABORTED from the function that it returns
 */
export function countSteps(
  { emitter, signal }: Pick<MergeRequest, "emitter" | "signal">,
  { stage, unit, total }: Steps,
): () => Promise<void> {
  const tell = startProgress(emitter, stage, unit);
  let done = 0;
  return async () => {
    done++;
    tell(done, total);
    await new Promise((resolve) => setTimeout(resolve, 0));
    throwIfAborted(signal, `${stage} after ${done} of ${total} ${unit}`);
  };
}
