import { CoppiceError, type KvCache, type LayerRange, type MoeModel } from "@coppice/core";
import { operatorHeads, paddedShape } from "@coppice/onnx";
import type { Tensor } from "onnxruntime-node";
import type { Runtime } from "./sessions.js";

/** Keys and values of one layer, each [sequences, kvHeads, capacity, head size], that runs extend in place. */
export interface LayerCache {
  readonly key: Tensor;
  readonly value: Tensor;
}

type HeadSizes = ReturnType<typeof operatorHeads>;

interface LayerArrays {
  readonly key: Float32Array;
  readonly value: Float32Array;
}

/** Consecutive sequences that run side by side and so share their arrays. */
export class CacheGroup {
  readonly first: number;
  readonly count: number;
  readonly #runtime: Runtime;
  readonly #sizes: ReadonlyMap<number, HeadSizes>;
  #capacity = 0;
  #layers: ReadonlyMap<number, LayerArrays> = new Map();

  /** @param range layers that run */
  constructor(runtime: Runtime, model: MoeModel, { from, to }: LayerRange, first: number, count: number) {
    this.first = first;
    this.count = count;
    this.#runtime = runtime;
    const layers = model.layers.slice(from, to);
    this.#sizes = new Map(
      layers.map((layer) => [layer.index, operatorHeads(paddedShape(layer, model.hiddenSize))]),
    );
  }

  /**
   * Makes room for `positions` tokens per sequence, and an eighth more so that decoding seldom moves the values. Not
   * twice as many: onnxruntime-node copies whatever a run gives out, here the whole arrays, room included.
   */
  reserve(positions: number): void {
    if (positions <= this.#capacity) return;
    const capacity = Math.ceil(positions / 8) * 9;
    const grown = Array.from(this.#sizes, ([layer, { kvHeads, size: headSize }]) => {
      const heads = this.count * kvHeads;
      const old = this.#layers.get(layer);
      const grow = (values: Float32Array | undefined) => {
        const larger = new Float32Array(heads * capacity * headSize);
        const size = this.#capacity * headSize;
        for (let head = 0; values && head < heads; head++) {
          larger.set(values.subarray(head * size, (head + 1) * size), head * capacity * headSize);
        }
        return larger;
      };
      return [layer, { key: grow(old?.key), value: grow(old?.value) }] as const;
    });
    this.#layers = new Map(grown);
    this.#capacity = capacity;
  }

  /** Views of all sequences of the group, or of the one that is `only`-th in it. */
  layer(index: number, only?: number): LayerCache {
    const { kvHeads, size: headSize } = this.#sizes.get(index) as HeadSizes;
    const { key, value } = this.#layers.get(index) as LayerArrays;
    const size = kvHeads * this.#capacity * headSize;
    const from = (only ?? 0) * size;
    const count = only === undefined ? this.count : 1;
    const view = (values: Float32Array) =>
      new this.#runtime.Tensor("float32", values.subarray(from, from + count * size), [
        count,
        kvHeads,
        this.#capacity,
        headSize,
      ]);
    return { key: view(key), value: view(value) };
  }
}

/**
 * Rotated keys and values of every layer. A run writes behind the lengths and commits them at its end, so a run that
 * fails leaves the cache as it was.
 */
export class CpuCache implements KvCache {
  readonly owner: object;
  #lengths: number[];
  #groups: readonly CacheGroup[] | undefined;
  #disposed = false;

  constructor(owner: object, sequences: number) {
    this.owner = owner;
    this.#lengths = new Array<number>(sequences).fill(0);
  }

  get lengths(): readonly number[] {
    return this.#lengths;
  }

  /** The groups, made by `make` at the first run and kept. @throws COPPICE_BACKEND_DISPOSED */
  groups(make: () => readonly CacheGroup[]): readonly CacheGroup[] {
    if (this.#disposed) throw new CoppiceError("COPPICE_BACKEND_DISPOSED", "the cache was disposed");
    this.#groups ??= make();
    return this.#groups;
  }

  commit(added: readonly Int32Array[]): void {
    this.#lengths = this.#lengths.map((length, s) => length + (added[s] as Int32Array).length);
  }

  dispose(): void {
    this.#disposed = true;
    this.#groups = [];
  }
}
