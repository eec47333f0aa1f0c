import { type CheckedAttention, CoppiceError, type KvCache } from "@coppice/core";
import { floats } from "./scratch.js";

interface Store {
  keys: Float32Array;
  values: Float32Array;
}

/**
 * Rotated keys and values of every layer and sequence, one row per position, grown by doubling.
 * A run writes behind the lengths and commits them at its end, so a run that fails leaves the cache as it was.
 */
export class ReferenceCache implements KvCache {
  readonly owner: object;
  /** What the runs with this cache are limited to. It keeps the keys all the same. */
  readonly attention: CheckedAttention | undefined;
  #lengths: number[];
  #stores: Store[][];
  #disposed = false;

  constructor(owner: object, layers: number, sequences: number, attention: CheckedAttention | undefined) {
    this.owner = owner;
    this.attention = attention;
    this.#lengths = new Array<number>(sequences).fill(0);
    this.#stores = Array.from({ length: layers }, () =>
      Array.from({ length: sequences }, () => ({ keys: new Float32Array(0), values: new Float32Array(0) })),
    );
  }

  get lengths(): readonly number[] {
    return this.#lengths;
  }

  get bytes(): number {
    return this.#stores
      .flat()
      .reduce((sum, { keys, values }) => sum + keys.byteLength + values.byteLength, 0);
  }

  get disposed(): boolean {
    return this.#disposed;
  }

  /** The arrays of one sequence in one layer, with room for `positions` rows of `keySize` and `valueSize` values. */
  reserve(layer: number, sequence: number, positions: number, keySize: number, valueSize: number): Store {
    const store = this.#stores[layer]?.[sequence];
    if (this.#disposed || !store) {
      throw new CoppiceError("COPPICE_BACKEND_DISPOSED", "the cache was disposed while a run used it");
    }
    if (store.keys.length < positions * keySize) {
      const rows = Math.max(positions, (2 * store.keys.length) / keySize);
      store.keys = grown(store.keys, rows * keySize);
      store.values = grown(store.values, rows * valueSize);
    }
    return store;
  }

  commit(added: readonly Int32Array[]): void {
    this.#lengths = this.#lengths.map((length, s) => length + (added[s] as Int32Array).length);
  }

  dispose(): void {
    this.#disposed = true;
    this.#stores = [];
  }
}

function grown(values: Float32Array, length: number): Float32Array {
  const larger = floats(length);
  larger.set(values);
  return larger;
}
