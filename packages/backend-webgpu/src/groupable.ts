import {
  type CheckedRunRequest,
  type LayerPlan,
  type MoeModel,
  type RunRequest,
  skipRuleOf,
} from "@coppice/core";
import { fewRows } from "@coppice/kernels-webgpu";
import { splitTokens } from "./attention-block.js";
import type { ExpertPool } from "./expert-pool.js";
import type { WantedTargets } from "./head.js";

/** A run that can be computed together with others. */
export interface GroupJob {
  readonly request: RunRequest;
  readonly checked: CheckedRunRequest;
  readonly plans: ReadonlyMap<number, LayerPlan>;
  readonly wanted: WantedTargets;
}

/** Up to so many rows, products in float16 are not those of matrix units. */
const fewHalfRows = 32;
/** Workgroups per axis. */
const mostGroups = 65535;

/**
 * Whether a run gives the same bits alone and together with others: whole sequences, from one layer to the end, targets scored, and
 * plans that only choose and merge experts.
 */
export function isGroupable(
  model: MoeModel,
  pools: ReadonlyMap<number, ExpertPool>,
  { cache, tap, boundaries = [], hold = [], attention, memory }: RunRequest,
  { tokens, to, rows, targets }: CheckedRunRequest,
  plans: ReadonlyMap<number, LayerPlan>,
  half: boolean,
): boolean {
  if (cache || tap || attention || memory || boundaries.length > 0) return false;
  if (!targets || !rows || hold.includes(to)) return false;
  // Products of few rows sum in another order.
  const few = half ? fewHalfRows : fewRows;
  if (tokens <= few || new Set(rows).size <= few) return false;
  return model.layers.every(({ index, feedForward }) => {
    if (feedForward.kind !== "moe") return feedForward.kind === "dense";
    const plan = plans.get(index);
    const pool = pools.get(index);
    const { router } = feedForward;
    if (!pool || router.groups || skipRuleOf(router, plan)) return false;
    if (
      plan?.routerMap ||
      plan?.units ||
      plan?.down !== undefined ||
      plan?.router ||
      plan?.topK !== undefined
    )
      return false;
    return pool.merged(plan) <= pool.capacity;
  });
}

/** How many of the first jobs go together, at most about `most` tokens. */
export function countTogether(
  model: MoeModel,
  pools: ReadonlyMap<number, ExpertPool>,
  jobs: readonly GroupJob[],
  most: number,
): number {
  const heads = Math.max(
    ...model.layers.map(({ attention }) => (attention.kind === "other" ? 0 : attention.heads)),
  );
  const isShort = ({ checked: { starts } }: GroupJob) =>
    starts.every((start, s) => s === 0 || start - (starts[s - 1] as number) <= splitTokens);
  const [first] = jobs as [GroupJob];
  // Sequences that are short go another way than those that are not, up to what one grid has room for.
  const short = isShort(first);
  const room = short ? Math.min(most, Math.floor(mostGroups / heads)) : most;
  const merged = new Map<number, number>();
  let tokens = 0;
  let count = 0;
  for (const job of jobs) {
    if (count > 0 && (tokens + job.checked.tokens > room || isShort(job) !== short)) break;
    const own = [...pools].map(([layer, pool]): [number, number] => [
      layer,
      (merged.get(layer) ?? 0) + pool.merged(job.plans.get(layer)),
    ]);
    if (count > 0 && own.some(([layer, needed]) => needed > (pools.get(layer) as ExpertPool).capacity)) break;
    for (const [layer, needed] of own) merged.set(layer, needed);
    tokens += job.checked.tokens;
    count++;
  }
  return count;
}
