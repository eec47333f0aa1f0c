import type { BlockMask } from "@coppice/core";
import { maskedColumns } from "@coppice/core";
import type { AttentionSight } from "./attention.js";
import { attentionParams, sightBindings, sightCode } from "./attention-sight-code.js";
import type { Gpu } from "./gpu.js";
import type { GpuBuffer } from "./gpu-buffer.js";
import { reads, writes } from "./kernel.js";
import { groupIndex, mainOf, spreadThreads } from "./spread.js";

export interface KeepRowsCall {
  /** [tokens, kvHeads, size] */
  readonly x: GpuBuffer;
  readonly tokens: number;
  readonly kvHeads: number;
  readonly size: number;
  /** `AttentionTables.rows` */
  readonly rows: GpuBuffer;
  /** Where rows go. */
  readonly sight: AttentionSight & { readonly kind: "spans" };
  /** Rows of `size` values, written. */
  readonly y: GpuBuffer;
}

const threads = 64;

/** Writes keys or values to their rows; of a ring only those that are not overwritten later in the same run. */
export function keepRows(gpu: Gpu, { x, tokens, kvHeads, size, rows, sight, y }: KeepRowsCall): void {
  const { heads, group, sights, stride } = attentionParams;
  const kernel = gpu.kernel("keep-rows", () => ({
    name: "keep-rows",
    params: { heads, group, sights, stride, count: "u32", size: "u32" } as const,
    bindings: [
      reads("x", "array<f32>"),
      reads("rows", "array<vec4u>"),
      ...sightBindings("spans"),
      writes("y", "array<f32>"),
    ],
    code: `${sightCode("spans")}
${mainOf(threads)} {
  let i = ${groupIndex} * ${threads}u + t;
  if (i >= p.count) { return; }
  let kv_head = i / p.size % p.heads;
  let place = rows[i / (p.size * p.heads)];
  let sight = sight_of(place.z, kv_head);
  if (sight.w > 0u && place.x >= sight.x && place.x + sight.w < place.w) { return; }
  y[key_row(sight, 0u, place.x, kv_head) * p.size + i % p.size] = x[i];
}`,
  }));
  const count = tokens * kvHeads * size;
  const params = { heads: kvHeads, group: 1, sights: sight.first, stride: sight.stride, count, size };
  gpu.commands.dispatch(kernel, [x, rows, sight.table, y], params, ...spreadThreads(count, threads));
}

/**
 * The table of `AttentionSight` of kind `blocks`: per sequence tokens per block, blocks, layouts and the first word of its bits;
 * then, for every layout and block of queries, a bit per block of keys.
 * @param masks one per sequence, each causal; undefined for one that sees all before it
 */
export function maskTable(masks: readonly (BlockMask | undefined)[]): Uint32Array {
  const words = (mask: BlockMask) => mask.layouts * mask.blocks * Math.ceil(mask.blocks / 32);
  const table = new Uint32Array(
    masks.reduce((sum, mask) => sum + (mask ? words(mask) : 0), 4 * masks.length),
  );
  let at = 4 * masks.length;
  masks.forEach((mask, sequence) => {
    if (!mask) return;
    const { blockSize, blocks, layouts } = mask;
    table.set([blockSize, blocks, layouts, at], 4 * sequence);
    for (let layout = 0; layout < layouts; layout++) {
      for (let row = 0; row < blocks; row++, at += Math.ceil(blocks / 32)) {
        for (const column of maskedColumns(mask, layout, row)) {
          const word = at + (column >> 5);
          table[word] = (table[word] as number) | (1 << (column & 31));
        }
      }
    }
  });
  return table;
}
