import type { LayerSpans } from "@coppice/core";
import { copyRows, type Gpu, type GpuBuffer } from "@coppice/kernels-webgpu";

/** Where the keys of one KV head of a sequence lie. */
interface HeadRows {
  /** Row of position 0. */
  readonly base: number;
  readonly sinks: number;
  /** Places for the latest positions behind the sinks, used again and again; 0: every position has its own. */
  readonly ring: number;
  readonly rows: number;
}

interface Layout {
  /** Per sequence and KV head. */
  readonly heads: readonly HeadRows[];
  readonly rows: number;
}

export interface SpanStoreShape {
  readonly kvHeads: number;
  readonly keyDim: number;
  readonly valueDim: number;
}

/**
 * Keys and values of a layer whose KV heads have spans: every head of every sequence has rows of its own, sinks and a ring of its
 * window, or all positions for heads that see everything, grown by doubling. Runs of several tokens need rings that are longer by
 * as many, so that no key is overwritten that a token of the run sees, or a run after one that failed.
 */
export class SpanStore {
  readonly #gpu: Gpu;
  readonly #spans: readonly (LayerSpans | undefined)[];
  readonly #shape: SpanStoreShape;
  #room = 0;
  #slack = 0;
  #layout: Layout | undefined;
  #buffers: { readonly keys: GpuBuffer; readonly values: GpuBuffer } | undefined;

  /** @param spans per sequence */
  constructor(gpu: Gpu, spans: readonly (LayerSpans | undefined)[], shape: SpanStoreShape) {
    this.#gpu = gpu;
    this.#spans = spans;
    this.#shape = shape;
  }

  get bytes(): number {
    return this.#buffers ? this.#buffers.keys.bytes + this.#buffers.values.bytes : 0;
  }

  /**
   * Makes room for a run.
   * @param lengths tokens held per sequence
   * @param longest positions of the longest sequence after the run
   * @param added most tokens of a sequence in a run whose queries read this store
   * @returns rows of keys and values, and per sequence and KV head [sinks, window, base, ring] of `AttentionSight`
   */
  reserve(
    lengths: readonly number[],
    longest: number,
    added: number,
  ): { readonly keys: GpuBuffer; readonly values: GpuBuffer; readonly table: readonly number[] } {
    if (longest > this.#room) this.#room = Math.max(16, 2 ** Math.ceil(Math.log2(longest)));
    if (added - 1 > this.#slack) this.#slack = 16 * Math.ceil((added - 1) / 16);
    const layout = this.#plan();
    const { keyDim, valueDim, kvHeads } = this.#shape;
    if (!this.#buffers || !this.#layout || !sameRows(layout, this.#layout)) {
      const make = (size: number) => this.#gpu.buffer(4 * layout.rows * size, "a cache of keys and values");
      const made = { keys: make(keyDim), values: make(valueDim) };
      if (this.#buffers && this.#layout) {
        const moved = movedRows(this.#layout, layout, lengths, kvHeads);
        const index = this.#gpu.upload(moved, "rows of a cache");
        const move = { rows: layout.rows, index, kind: "gather" } as const;
        copyRows(this.#gpu, { ...move, x: this.#buffers.keys, y: made.keys, size: keyDim });
        copyRows(this.#gpu, { ...move, x: this.#buffers.values, y: made.values, size: valueDim });
        index.dispose();
        this.dispose();
      }
      this.#buffers = made;
      this.#layout = layout;
    }
    const table = layout.heads.flatMap(({ base, ring }, i) => {
      const { sinks = 0, window = 0 } = this.#spans[Math.floor(i / kvHeads)]?.[i % kvHeads] ?? {};
      return [sinks, window, base, ring];
    });
    return { ...this.#buffers, table };
  }

  dispose(): void {
    this.#buffers?.keys.dispose();
    this.#buffers?.values.dispose();
    this.#buffers = undefined;
  }

  #plan(): Layout {
    let base = 0;
    const heads = this.#spans.flatMap((spans) =>
      Array.from({ length: this.#shape.kvHeads }, (_, head): HeadRows => {
        const { sinks = 0, window = this.#room } = spans?.[head] ?? {};
        const short = sinks + window + this.#slack < this.#room;
        const ring = short ? window + this.#slack : 0;
        const own = { base, sinks, ring, rows: short ? sinks + ring : this.#room };
        base += own.rows;
        return own;
      }),
    );
    return { heads, rows: base };
  }
}

function sameRows(a: Layout, b: Layout): boolean {
  return a.heads.every(
    ({ base, ring, rows }, i) =>
      base === b.heads[i]?.base && ring === b.heads[i].ring && rows === b.heads[i].rows,
  );
}

const rowOf = ({ base, sinks, ring }: HeadRows, position: number) =>
  base + (ring > 0 && position >= sinks ? sinks + ((position - sinks) % ring) : position);

/** Per row of the new layout the row of the old one that it takes over; 0 for rows that hold nothing yet. */
function movedRows(from: Layout, to: Layout, lengths: readonly number[], kvHeads: number): Uint32Array {
  const index = new Uint32Array(to.rows);
  to.heads.forEach((head, i) => {
    const old = from.heads[i] as HeadRows;
    const length = lengths[Math.floor(i / kvHeads)] as number;
    const held = Math.min(head.ring || length, old.ring || length);
    const move = (first: number, end: number) => {
      for (let position = first; position < end; position++)
        index[rowOf(head, position)] = rowOf(old, position);
    };
    move(0, Math.min(head.sinks, length));
    move(Math.max(head.sinks, length - held), length);
  });
  return index;
}
