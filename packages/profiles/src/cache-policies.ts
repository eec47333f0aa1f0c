import { EvictionCache } from "./eviction-cache.js";

/**
 * What stays in memory:
 *
 * - `lru`: what was used last
 * - `lfu`: what was used most, uses weighing half as much after `halfLife` tokens: the sum over uses of
 *   2^(-age / halfLife); counts go on while an expert is out of memory
 * - `static`: a list of the most used experts of other tokens, which never changes; others are read for one use
 * - `belady`: what is used again soonest, which needs to know the future. Of policies that begin empty and keep every
 *   expert that they have just read, none misses less often over both phases when all experts are equal in size
 *   (L. Belady, IBM Systems Journal 5, 1966); `static` does neither, and may miss less often
 */
export const cachePolicies = ["lru", "lfu", "static", "belady"] as const;
export type CachePolicy = (typeof cachePolicies)[number];

/** One cache, what it may hold, and what it is asked for. */
export interface CacheRun {
  /** Size of every item, in the unit of `capacity`. */
  readonly sizes: ArrayLike<number>;
  readonly capacity: number;
  /** Items in the order of their uses. */
  readonly uses: Int32Array;
  /** Tokens before each use, by which uses age. */
  readonly times: ArrayLike<number>;
}

export interface PolicyOptions {
  /** Tokens after which a use counts half for `lfu`; Infinity: uses never age. */
  readonly halfLife: number;
  /** Uses of every item that `static` learns from. */
  readonly learned: ArrayLike<number>;
}

/** Which uses find their item in memory: 1 or 0. Memory is empty at first, but for the list of `static`. */
export function cacheHits(policy: CachePolicy, run: CacheRun, options: PolicyOptions): Uint8Array {
  const { sizes, capacity, uses, times } = run;
  const cache = new EvictionCache(sizes, capacity);
  const hits = new Uint8Array(uses.length);
  if (policy === "static") {
    const hot = hotList(sizes, capacity, options.learned);
    return hits.map((_, i) => (hot.has(uses[i] as number) ? 1 : 0));
  }
  const priority = priorities(policy, run, options);
  for (let i = 0; i < uses.length; i++) {
    hits[i] = cache.use(uses[i] as number, priority(uses[i] as number, times[i] as number, i)) ? 1 : 0;
  }
  return hits;
}

/** The most used items that fit together, by use per size; ties go to the lower item. Unused ones are left out. */
export function hotList(sizes: ArrayLike<number>, capacity: number, learned: ArrayLike<number>): Set<number> {
  const worth = Array.from(learned, (count, item) => count / (sizes[item] as number));
  const order = Array.from(worth.keys()).filter((item) => (learned[item] as number) > 0);
  order.sort((a, b) => (worth[b] as number) - (worth[a] as number) || a - b);
  const hot = new Set<number>();
  let room = capacity;
  for (const item of order) {
    const size = sizes[item] as number;
    if (size > room) continue;
    hot.add(item);
    room -= size;
  }
  return hot;
}

type Priority = (item: number, time: number, use: number) => number;

function priorities(
  policy: Exclude<CachePolicy, "static">,
  { sizes, uses }: CacheRun,
  { halfLife }: PolicyOptions,
): Priority {
  if (policy === "lru") return (_, __, use) => use;
  if (policy === "belady") {
    const next = nextUses(uses, sizes.length);
    return (_, __, use) => -(next[use] as number);
  }
  // All counts halve alike, so that they compare as Σ 2^(time / halfLife), kept as its logarithm.
  const logs = new Float64Array(sizes.length).fill(Number.NEGATIVE_INFINITY);
  return (item, time) => {
    const now = time / halfLife;
    const before = logs[item] as number;
    const most = Math.max(before, now);
    const log = most + Math.log2(2 ** (before - most) + 2 ** (now - most));
    logs[item] = log;
    return log;
  };
}

/** Index of the next use of the same item; Infinity for the last. */
function nextUses(uses: Int32Array, items: number): Float64Array {
  const next = new Float64Array(uses.length);
  const seen = new Float64Array(items).fill(Number.POSITIVE_INFINITY);
  for (let i = uses.length - 1; i >= 0; i--) {
    const item = uses[i] as number;
    next[i] = seen[item] as number;
    seen[item] = i;
  }
  return next;
}
