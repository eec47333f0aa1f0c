import {
  type CheckedRunRequest,
  type LayerPlan,
  type MoeModel,
  type RunRequest,
  skipRuleOf,
} from "@coppice/core";
import { queryTileFor } from "@coppice/kernels-webgpu";
import type { ExpertPool } from "./expert-pool.js";
import type { WantedTargets } from "./head.js";

/** A run that can be computed together with others. */
export interface GroupJob {
  readonly request: RunRequest;
  readonly checked: CheckedRunRequest;
  readonly plans: ReadonlyMap<number, LayerPlan>;
  readonly wanted: WantedTargets;
}

/**
 * Whether a run can be computed together with others: whole sequences, from one layer to the end, targets scored, and plans that
 * only choose and merge experts.
 */
export function isGroupable(
  model: MoeModel,
  pools: ReadonlyMap<number, ExpertPool>,
  { cache, tap, boundaries = [], hold = [], attention, memory }: RunRequest,
  { to, targets }: CheckedRunRequest,
  plans: ReadonlyMap<number, LayerPlan>,
): boolean {
  if (cache || tap || attention || memory || boundaries.length > 0) return false;
  if (!targets || hold.includes(to)) return false;
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
    return pool.merged(plan).length <= pool.capacity;
  });
}

/** How many of the first jobs go together, at most about `most` tokens. */
export function countTogether(
  pools: ReadonlyMap<number, ExpertPool>,
  jobs: readonly GroupJob[],
  most: number,
): number {
  // Short sequences take smaller tiles of queries.
  const tileOf = ({ checked: { starts } }: GroupJob) =>
    queryTileFor(
      starts.reduce((most, start, s) => Math.max(most, s === 0 ? 0 : start - (starts[s - 1] as number)), 0),
    );
  const tile = tileOf(jobs[0] as GroupJob);
  const merged = new Map(Array.from(pools.keys(), (layer) => [layer, new Set<string>()]));
  let tokens = 0;
  let count = 0;
  for (const job of jobs) {
    if (count > 0 && (tokens + job.checked.tokens > most || tileOf(job) !== tile)) break;
    const fits = [...pools].every(([layer, pool]) => {
      const needed = merged.get(layer) as Set<string>;
      for (const key of pool.merged(job.plans.get(layer))) needed.add(key);
      return needed.size <= pool.capacity;
    });
    if (count > 0 && !fits) break;
    tokens += job.checked.tokens;
    count++;
  }
  return count;
}
