import type { Choices, SortedChoices } from "./expert-matmul.js";
import type { Gpu } from "./gpu.js";
import type { GpuBuffer } from "./gpu-buffer.js";
import { type KernelSource, reads, writes } from "./kernel.js";
import type { Tile } from "./tile-frame.js";

/** Slots that the counters in workgroup memory have room for; 16 KiB are what every device has. */
export const slotLimit = 1024;
/** Counters that slots share out: with few slots each has several, so that threads wait less for one another. */
const counters = 2048;
/** Threads that use one of the counters of a slot, at least. */
const sharing = 8;
const threads = 256;

/** Bytes of the buffers of `SortedChoices` for so many choices. */
export function sortedBytes(
  choices: number,
  slotCount: number,
  tile = tileOf(choices, slotCount),
): { order: number; tiles: number } {
  return { order: 4 * choices, tiles: 16 * (1 + mostTiles(choices, slotCount, tile)) };
}

/** Small tiles where few tokens share an expert, large ones where many do. */
function tileOf(choices: number, slotCount: number): Tile {
  const each = choices / slotCount;
  return each > 1000 ? 128 : each > 24 ? 64 : 16;
}

function mostTiles(choices: number, slotCount: number, tile: Tile): number {
  return Math.floor(choices / tile) + Math.min(choices, slotCount);
}

/**
 * Sorts choices by slot and cuts each slot's into tiles, in one workgroup: counting, sums over the counts, placing. The order
 * within a slot is left open; nothing depends on it, because every choice has a row of its own.
 * @param counts [1] u32, grows by the number of choices that run
 * @param tile default: what suits their number
 */
export function sortChoices(
  gpu: Gpu,
  { tokens, topK, slots, places, slotCount }: Choices,
  { order, tiles }: Pick<SortedChoices, "order" | "tiles">,
  counts: GpuBuffer,
  tile = tileOf(tokens * topK, slotCount),
): SortedChoices {
  const choices = tokens * topK;
  const kernel = gpu.kernel("sort-choices", () => source);
  gpu.commands.dispatch(
    kernel,
    [slots, places, order, tiles, counts],
    {
      choices,
      slots: slotCount,
      tile,
      copies: Math.min(threads / sharing, Math.floor(counters / slotCount)),
    },
    1,
  );
  return { order, tiles, most: mostTiles(choices, slotCount, tile), tile };
}

const source: KernelSource<"choices" | "slots" | "tile" | "copies"> = {
  name: "sort-choices",
  params: { choices: "u32", slots: "u32", tile: "u32", copies: "u32" },
  bindings: [
    reads("slots", "array<vec4i>"),
    reads("places", "array<u32>"),
    writes("order", "array<u32>"),
    writes("tiles", "array<vec4u>"),
    writes("counts", "array<u32>"),
  ],
  code: `
var<workgroup> next: array<atomic<u32>, ${counters}>;
var<workgroup> starts: array<u32, ${slotLimit}>;
@compute @workgroup_size(${threads})
fn main(@builtin(local_invocation_index) t: u32) {
  // Workgroup memory begins as zeros.
  let copy = t % p.copies;
  for (var i = t; 4u * i < p.choices; i += ${threads}u) {
    let four = slots[i];
    for (var j = 0u; j < min(4u, p.choices - 4u * i); j++) {
      if (four[j] >= 0) { atomicAdd(&next[u32(four[j]) * p.copies + copy], 1u); }
    }
  }
  workgroupBarrier();
  for (var slot = t; slot < p.slots; slot += ${threads}u) {
    var sum = 0u;
    for (var i = slot * p.copies; i < (slot + 1u) * p.copies; i++) {
      let count = atomicLoad(&next[i]);
      atomicStore(&next[i], sum);
      sum += count;
    }
    starts[slot] = sum;
  }
  workgroupBarrier();
  if (t == 0u) {
    var sum = 0u;
    var tile_count = 0u;
    for (var slot = 0u; slot < p.slots; slot++) {
      let count = starts[slot];
      starts[slot] = sum;
      for (var done = 0u; done < count; done += p.tile) {
        tile_count++;
        tiles[tile_count] = vec4u(places[slot], sum + done, min(p.tile, count - done), 0u);
      }
      sum += count;
    }
    tiles[0] = vec4u(tile_count, 0u, 0u, 0u);
    counts[0] += sum;
  }
  workgroupBarrier();
  for (var i = t; 4u * i < p.choices; i += ${threads}u) {
    let four = slots[i];
    for (var j = 0u; j < min(4u, p.choices - 4u * i); j++) {
      if (four[j] < 0) { continue; }
      let slot = u32(four[j]);
      order[starts[slot] + atomicAdd(&next[slot * p.copies + copy], 1u)] = 4u * i + j;
    }
  }
}`,
};
