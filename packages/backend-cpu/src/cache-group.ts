import { CachePlaces, type LayerRange, type MoeModel } from "@coppice/core";
import { operatorHeads, paddedShape } from "@coppice/onnx";
import type { Tensor } from "onnxruntime-node";
import { type HeadGroup, headGroups, type PlanSpans } from "./head-groups.js";
import type { Runtime } from "./sessions.js";
import type { Piece } from "./units.js";

/** Earlier keys and values of one layer, for the sequences of a unit. */
export interface LayerCache {
  readonly groups: readonly HeadCache[];
  /** Adds those of new tokens, [pieces, kvHeads, tokens, head size] each. */
  append(pieces: readonly Piece[], key: Tensor, value: Tensor): void;
}

/** Those of some heads, [sequences, heads, places, head size]. */
export interface HeadCache {
  readonly group: HeadGroup;
  readonly places: number;
  readonly key: Tensor;
  readonly value: Tensor;
}

interface GroupArrays {
  readonly group: HeadGroup;
  readonly layout: CachePlaces;
  readonly places: number;
  readonly key: Float32Array;
  readonly value: Float32Array;
}

interface LayerArrays {
  readonly size: number;
  groups: readonly GroupArrays[];
}

/** Tokens that there is room for beyond those that need it: at least so many, and a thirty-second part. */
const leastRoom = 32;
const roomShift = 5;

/** Products are a twentieth faster over a multiple of 16 places. */
function roundUp(places: number): number {
  return 16 * Math.ceil(places / 16);
}

/** What places held before a run that may yet fail. */
interface Overwritten {
  readonly array: Float32Array;
  readonly offset: number;
  readonly values: Float32Array;
}

/** Keys and values of consecutive sequences that run side by side and so share their arrays, which all layers see alike. */
export class CacheGroup {
  readonly first: number;
  readonly count: number;
  /** What heads see; undefined: as the model is. */
  readonly spans: PlanSpans | undefined;
  readonly #runtime: Runtime;
  readonly #layers: ReadonlyMap<number, LayerArrays>;
  #positions = 0;
  #overwritten: Overwritten[] = [];

  /** @param range layers that run */
  constructor(
    runtime: Runtime,
    model: MoeModel,
    { from, to }: LayerRange,
    first: number,
    count: number,
    spans: PlanSpans | undefined,
  ) {
    this.first = first;
    this.count = count;
    this.spans = spans;
    this.#runtime = runtime;
    const none = new Float32Array(0);
    this.#layers = new Map(
      model.layers.slice(from, to).map((layer) => {
        const groups = headGroups(spans?.layers[layer.index], layer.attention);
        const { size } = operatorHeads(paddedShape(layer, model.hiddenSize));
        const empty = (group: HeadGroup): GroupArrays => ({
          group,
          layout: new CachePlaces(group.span),
          places: 0,
          key: none,
          value: none,
        });
        return [layer.index, { size, groups: groups.map(empty) }];
      }),
    );
  }

  get bytes(): number {
    let bytes = 0;
    for (const { groups } of this.#layers.values()) {
      for (const { key, value } of groups) bytes += key.byteLength + value.byteLength;
    }
    return bytes;
  }

  /**
   * Makes room for `positions` tokens per sequence, and some more so that decoding seldom moves the values. Not
   * twice as many: every step computes over the places that are empty yet, and hides them.
   */
  reserve(positions: number): void {
    if (positions <= this.#positions) return;
    this.#positions = positions + Math.max(leastRoom, positions >> roomShift);
    for (const layer of this.#layers.values()) {
      layer.groups = layer.groups.map((arrays) => this.#grown(arrays, layer.size));
    }
  }

  /** Views of all sequences of the group, or of the one that is `only`-th in it. */
  layer(index: number, only?: number): LayerCache {
    const { size, groups } = this.#layers.get(index) as LayerArrays;
    const count = only === undefined ? this.count : 1;
    return {
      groups: groups.map(({ group, places, key, value }) => {
        const length = group.heads.length * places * size;
        const from = (only ?? 0) * length;
        const dims = [count, group.heads.length, places, size];
        const view = (values: Float32Array) =>
          new this.#runtime.Tensor("float32", values.subarray(from, from + count * length), dims);
        return { group, places, key: view(key), value: view(value) };
      }),
      append: (pieces, key, value) => {
        for (const arrays of groups) {
          this.#append(arrays, size, pieces, key, arrays.key);
          this.#append(arrays, size, pieces, value, arrays.value);
        }
      },
    };
  }

  /** Keeps what was added since, or else forgets it. */
  settle(keep: boolean): void {
    if (!keep) {
      for (const { array, offset, values } of this.#overwritten.toReversed()) array.set(values, offset);
    }
    this.#overwritten = [];
  }

  #grown(arrays: GroupArrays, size: number): GroupArrays {
    const { group, layout, places } = arrays;
    // An array without places is none that a graph takes.
    const more = roundUp(Math.max(1, Math.min(this.#positions, layout.room)));
    if (more === places) return arrays;
    const heads = this.count * group.heads.length;
    const grow = (values: Float32Array) => {
      const larger = new Float32Array(heads * more * size);
      for (let head = 0; head < heads; head++) {
        const held = values.subarray(head * places * size, (head + 1) * places * size);
        larger.set(held, head * more * size);
      }
      return larger;
    };
    return { ...arrays, places: more, key: grow(arrays.key), value: grow(arrays.value) };
  }

  #append(
    { group, layout, places }: GroupArrays,
    size: number,
    pieces: readonly Piece[],
    { data, dims }: Tensor,
    array: Float32Array,
  ): void {
    const added = data as Float32Array;
    const [, kvHeads, longest] = dims as [number, number, number];
    const heads = group.heads.length;
    for (const [p, { sequence, begin, end, past }] of pieces.entries()) {
      const held = layout.filled(past - begin);
      layout.ranges(past, past + end - begin, past + end - begin, (position, place, count) => {
        for (const [h, head] of group.heads.entries()) {
          const from = ((p * kvHeads + head) * longest + position - past) * size;
          const to = (((sequence - this.first) * heads + h) * places + place) * size;
          if (place < held) {
            const values = array.slice(to, to + count * size);
            this.#overwritten.push({ array, offset: to, values });
          }
          array.set(added.subarray(from, from + count * size), to);
        }
      });
    }
  }
}
