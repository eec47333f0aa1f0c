import { CoppiceError, type KvCache } from "@coppice/core";
import type { Gpu, GpuBuffer } from "@coppice/kernels-webgpu";

interface Store {
  readonly keys: GpuBuffer;
  readonly values: GpuBuffer;
  /** Positions per sequence that there is room for. */
  readonly capacity: number;
}

/**
 * Rotated keys and values of every layer on the device: row `sequence * capacity + position`, grown by doubling. A run writes
 * behind the lengths and commits them at its end, so a run that fails leaves the cache as it was.
 */
export class DeviceCache implements KvCache {
  readonly owner: object;
  readonly #gpu: Gpu;
  readonly #onDispose: (cache: DeviceCache) => void;
  #lengths: number[];
  readonly #stores = new Map<number, Store>();
  #disposed = false;

  constructor(owner: object, gpu: Gpu, sequences: number, onDispose: (cache: DeviceCache) => void) {
    this.owner = owner;
    this.#gpu = gpu;
    this.#onDispose = onDispose;
    this.#lengths = new Array<number>(sequences).fill(0);
  }

  get lengths(): readonly number[] {
    return this.#lengths;
  }

  get disposed(): boolean {
    return this.#disposed;
  }

  get bytes(): number {
    let bytes = 0;
    for (const { keys, values } of this.#stores.values()) bytes += keys.bytes + values.bytes;
    return bytes;
  }

  /** Positions per sequence that all layers of a run have room for, when the longest sequence comes to be so long. */
  capacityFor(longest: number): number {
    const known = this.#stores.values().next().value?.capacity ?? 0;
    return longest <= known ? known : Math.max(16, 2 ** Math.ceil(Math.log2(longest)));
  }

  /** The buffers of one layer. @param keySize values of the keys of one position */
  reserve(layer: number, capacity: number, keySize: number, valueSize: number): Store {
    if (this.#disposed) {
      throw new CoppiceError("COPPICE_BACKEND_DISPOSED", "the cache was disposed while a run used it");
    }
    const known = this.#stores.get(layer);
    if (known && known.capacity >= capacity) return known;
    const sequences = this.#lengths.length;
    const make = (size: number) =>
      this.#gpu.buffer(4 * sequences * capacity * size, "a cache of keys and values");
    const store: Store = { keys: make(keySize), values: make(valueSize), capacity };
    if (known) {
      for (const [from, to, size] of [
        [known.keys, store.keys, keySize],
        [known.values, store.values, valueSize],
      ] as const) {
        this.#lengths.forEach((length, s) => {
          this.#gpu.commands.copy(
            from,
            4 * s * known.capacity * size,
            to,
            4 * s * capacity * size,
            4 * length * size,
          );
        });
        from.dispose();
      }
    }
    this.#stores.set(layer, store);
    return store;
  }

  commit(added: readonly Int32Array[]): void {
    this.#lengths = this.#lengths.map((length, s) => length + (added[s] as Int32Array).length);
  }

  dispose(): void {
    this.#disposed = true;
    for (const { keys, values } of this.#stores.values()) {
      keys.dispose();
      values.dispose();
    }
    this.#stores.clear();
    this.#onDispose(this);
  }
}
