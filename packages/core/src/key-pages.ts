import type { KeyPages } from "./attention-plan.js";
import { CoppiceError } from "./errors.js";

/**
 * Checks what a masker returned for `positions` keys.
 * @throws COPPICE_ATTENTION_INVALID
 */
export function checkKeyPages({ pageSize, heads }: KeyPages, kvHeads: number, positions: number): void {
  const fail = (message: string) =>
    new CoppiceError("COPPICE_ATTENTION_INVALID", `not usable pages of keys: ${message}`);
  if (!Number.isSafeInteger(pageSize) || pageSize < 1)
    throw fail(`pageSize is ${pageSize}, expected a whole number of at least 1`);
  if (heads.length !== kvHeads) throw fail(`they are for ${heads.length} KV heads, expected ${kvHeads}`);
  const last = Math.ceil(positions / pageSize) - 1;
  heads.forEach((pages, head) => {
    let previous = -1;
    for (const page of pages) {
      if (page <= previous || page > last)
        throw fail(
          `KV head ${head} has page ${page} behind ${previous}; expected ascending ones up to ${last}`,
        );
      previous = page;
    }
    if (previous !== last) throw fail(`KV head ${head} lacks page ${last}, which holds the newest key`);
  });
}
