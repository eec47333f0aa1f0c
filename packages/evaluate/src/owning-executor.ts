import type { Executor } from "@coppice/core";

/**
 * An executor that owns the pool which scores: opens the scorer, and disposes the pool when that fails.
 * @param pool disposed when `dispose` is called
 * @param endScorer true to dispose the scorer first; a pool that ends its workers needs no farewell of theirs
 */
export async function owningExecutor(
  pool: { dispose(): Promise<void> },
  open: () => Promise<Executor>,
  { endScorer }: { readonly endScorer: boolean },
): Promise<Executor> {
  try {
    const scorer = await open();
    const dispose = async () => {
      if (endScorer) await scorer.dispose();
      await pool.dispose();
    };
    return {
      preferredBatch: scorer.preferredBatch,
      ...(scorer.parts !== undefined && { parts: scorer.parts }),
      ...(scorer.busyParts !== undefined && { busyParts: scorer.busyParts }),
      evaluate: (plans, options) => scorer.evaluate(plans, options),
      work: () => scorer.work(),
      dispose,
      [Symbol.asyncDispose]: dispose,
    };
  } catch (error) {
    await pool.dispose();
    throw error;
  }
}
