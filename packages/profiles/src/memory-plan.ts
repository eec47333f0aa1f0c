import { CoppiceError, findExperts, type MoeModel, moeLayers } from "@coppice/core";
import type { CachePolicy } from "./cache-policies.js";
import { droppedMass, type ExpertLists, rankScores } from "./expert-lists.js";
import { checkTraceModel, noExpert, type RoutingTrace } from "./routing-trace.js";
import { type Bandwidth, type CacheOptions, type PolicyResult, simulateCache } from "./simulate-cache.js";

export interface MemoryPlanOptions {
  readonly model: MoeModel;
  /** Of the whole model, on tokens like those to come. */
  readonly trace: RoutingTrace;
  /**
   * Which experts stay (`ranking`), and the probability that those who go had on tokens like those to come; for an honest
   * answer not the tokens that ranked them.
   */
  readonly lists: ExpertLists;
  /** Most bytes in memory for weights. */
  readonly budget: number;
  /** Dropped probability mass that is accepted. @default 0.05 */
  readonly tolerance?: number;
  /** Of caches, one for each layer. @default "lru" */
  readonly policy?: Exclude<CachePolicy, "belady">;
  readonly learn?: CacheOptions["learn"];
  readonly bandwidth?: Bandwidth;
}

/** What keeping a number of experts per layer means within the budget. */
export interface MemoryRow {
  readonly keep: number;
  /** Experts of a layer that are in memory at once. */
  readonly slots: number;
  /** `prune`: the kept are all in memory; `page`: all are kept, not all in memory; `both`: some of each; `whole`: neither. */
  readonly kind: "whole" | "prune" | "page" | "both";
  /** Mean over layers of the probability mass of the experts that are not kept. */
  readonly dropped: number;
  /** What the caches do; absent where everything kept is in memory. */
  readonly cache?: PolicyResult;
  /** Bytes per decoded token that `belady` loads, where `cache` is there. */
  readonly beladyMissBytes?: number;
}

export interface MemoryPlan {
  /** By ascending number kept, as far as groups allow and one expert per choice fits. */
  readonly rows: readonly MemoryRow[];
  /**
   * The row that loads the fewest bytes per decoded token of those within the tolerance; of equal ones the one that
   * drops the least. Undefined when none is.
   */
  readonly answer: MemoryRow | undefined;
}

/**
 * Says for a budget of memory whether to drop experts, to load them when they are needed, or to do some of each.
 *
 * Where experts are dropped, the trace of the whole model is bent: a token's choice of a dropped expert becomes the
 * first kept expert of the list that it has not chosen. Its true choice would need a run under that plan.
 * @throws COPPICE_PLAN_KEEP when not even the top-k of every layer fits, COPPICE_PROFILE_MODEL, COPPICE_USAGE
 */
export function planMemory(options: MemoryPlanOptions): MemoryPlan {
  const { model, trace, lists, budget, tolerance = 0.05 } = options;
  checkTraceModel(trace, model.fingerprint);
  if (trace.planned) {
    throw new CoppiceError("COPPICE_USAGE", `the trace "${trace.name}" was recorded under a plan`, {
      hint: "record one of the whole model",
    });
  }
  const layers = moeLayers(model);
  const eachSlot = trace.layers.reduce((sum, { expertBytes }) => sum + expertBytes, 0);
  const room = Math.floor((budget - trace.otherBytes) / eachSlot);
  const least = Math.max(...layers.map(({ feedForward }) => feedForward.router.topK));
  if (room < least) {
    throw new CoppiceError(
      "COPPICE_PLAN_KEEP",
      `${budget} bytes hold ${Math.max(0, room)} experts of every layer beside the other weights, a token needs ${least}`,
      {
        hint: `give at least ${trace.otherBytes + least * eachSlot} bytes`,
        details: { budget, room, least },
      },
    );
  }
  const most = Math.min(...layers.map(({ feedForward }) => feedForward.experts.length));
  const rows = Array.from({ length: most - least + 1 }, (_, i) => least + i).flatMap((keep) => {
    const kept = layers.map(({ feedForward, index }, i) =>
      findExperts(feedForward, rankScores(lists[i]?.ranking ?? []), keep, index),
    );
    if (!kept.every((experts) => experts !== undefined)) return [];
    return [memoryRow(options, kept, keep, room, most)];
  });
  const missed = ({ cache }: MemoryRow) => cache?.decode.missBytes ?? 0;
  const [answer] = rows
    .filter(({ dropped }) => dropped <= tolerance)
    .sort((a, b) => missed(a) - missed(b) || a.dropped - b.dropped);
  return { rows, answer };
}

function memoryRow(
  { trace, lists, policy = "lru", learn, bandwidth }: MemoryPlanOptions,
  kept: readonly (readonly number[])[],
  keep: number,
  room: number,
  most: number,
): MemoryRow {
  const drops = kept.map((experts, i) => droppedMass(lists[i] as ExpertLists[number], experts));
  const row = {
    keep,
    slots: Math.min(keep, room),
    dropped: keep === most ? 0 : drops.reduce((sum, drop) => sum + drop, 0) / drops.length,
  };
  const all = keep === most;
  if (keep <= room) return { ...row, kind: all ? "whole" : "prune" };
  const bent = (one: RoutingTrace) => (all ? one : bendTrace(one, kept, lists));
  const { policies } = simulateCache(bent(trace), {
    capacity: { experts: room },
    policies: [policy, "belady"],
    ...(learn !== undefined && { learn: typeof learn === "string" ? learn : bent(learn) }),
    ...(bandwidth && { bandwidth }),
  });
  const [cache, bound] = policies as [PolicyResult, PolicyResult];
  return { ...row, kind: all ? "page" : "both", cache, beladyMissBytes: bound.decode.missBytes };
}

/** The trace as if only some experts were there: see `planMemory`. */
export function bendTrace(
  trace: RoutingTrace,
  kept: readonly (readonly number[])[],
  lists: ExpertLists,
): RoutingTrace {
  return {
    ...trace,
    layers: trace.layers.map((layer, place) => {
      const { topK } = layer;
      const there = new Set(kept[place]);
      const ranked = (lists[place]?.ranking ?? []).filter((expert) => there.has(expert));
      const routes = layer.routes.slice();
      for (let start = 0; start < routes.length; start += topK) {
        const chosen = routes.subarray(start, start + topK);
        const taken = new Set(chosen);
        chosen.forEach((expert, i) => {
          if (expert === noExpert || there.has(expert)) return;
          const next = ranked.find((other) => !taken.has(other)) ?? noExpert;
          taken.add(next);
          chosen[i] = next;
        });
      }
      return { ...layer, routes };
    }),
  };
}
