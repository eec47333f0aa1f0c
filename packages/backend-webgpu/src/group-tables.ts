import { type GpuBuffer, mergeTable } from "@coppice/kernels-webgpu";
import type { GroupContext } from "./group-run.js";
import type { GroupJob } from "./groupable.js";

/** What differs between the runs of a group: which experts each keeps, and what is merged for them. */
export interface GroupTables {
  readonly buffer: GpuBuffer;
  /** Words of one run in the table of a layer. */
  readonly stride: number;
  /** Of MoE layers. */
  readonly layers: ReadonlyMap<number, LayerTable>;
  readonly mostBlocks: number;
}

export interface LayerTable {
  /** Word at which the table of `PlannedChoices` begins. */
  readonly start: number;
  /** Blocks that choices may go to. */
  readonly blocks: number;
  /** Merged experts that are not there yet: where their table begins, and their number. */
  readonly merges: { readonly start: number; readonly count: number } | undefined;
}

/** Places the experts of all runs and writes the tables of layers from `first` on, in one transfer. */
export function groupTables(
  { pools, workspace }: GroupContext,
  jobs: readonly GroupJob[],
  first: number,
): GroupTables {
  const stride = 1 + 2 * Math.max(0, ...Array.from(pools.values(), ({ experts }) => experts));
  const layers = new Map<number, LayerTable>();
  const parts: Uint32Array[] = [];
  let words = 0;
  for (const [layer, pool] of pools) {
    if (layer < first) continue;
    pool.begin();
    const table = new Uint32Array(jobs.length * stride);
    jobs.forEach(({ plans, checked }, run) => {
      if (checked.from > layer) return;
      const plan = plans.get(layer);
      const experts = plan?.experts ?? Array.from({ length: pool.experts }, (_, i) => i);
      const blocks = plan ? pool.place(plan) : experts;
      const own = experts.flatMap((expert, slot) => [expert, blocks[slot] as number]);
      table.set([experts.length, ...own], run * stride);
    });
    const merges = mergeTable(pool.merges);
    layers.set(layer, {
      start: words,
      blocks: pool.blocks,
      merges: pool.merges.length > 0 ? { start: words + table.length, count: pool.merges.length } : undefined,
    });
    parts.push(table, merges);
    words += table.length + merges.length;
  }
  const all = new Uint32Array(words);
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return {
    buffer: workspace.put("plans", all),
    stride,
    layers,
    mostBlocks: Math.max(0, ...Array.from(layers.values(), ({ blocks }) => blocks)),
  };
}
