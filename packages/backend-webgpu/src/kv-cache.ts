import { CoppiceError, type KvCache, type LayerSpans } from "@coppice/core";
import type { Gpu, GpuBuffer, SequenceSpan } from "@coppice/kernels-webgpu";
import type { AttentionLimits } from "./attention-limits.js";
import { SpanStore, type SpanStoreShape } from "./span-store.js";

interface Store {
  readonly keys: GpuBuffer;
  readonly values: GpuBuffer;
  /** Positions per sequence that there is room for. */
  readonly capacity: number;
}

/**
 * Rotated keys and values of every layer on the device: row `sequence * capacity + position`, grown by doubling, and rows of
 * their own for heads of layers that an attention plan limits. A run writes behind the lengths and commits them at its end, so a
 * run that fails leaves the cache as it was.
 */
export class DeviceCache implements KvCache {
  readonly owner: object;
  readonly limits: AttentionLimits;
  readonly #gpu: Gpu;
  readonly #onDispose: (cache: DeviceCache) => void;
  #lengths: number[];
  readonly #stores = new Map<number, Store>();
  readonly #spanStores = new Map<number, SpanStore>();
  #disposed = false;

  constructor(
    owner: object,
    gpu: Gpu,
    sequences: number,
    limits: AttentionLimits,
    onDispose: (cache: DeviceCache) => void,
  ) {
    this.owner = owner;
    this.limits = limits;
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
    for (const store of this.#spanStores.values()) bytes += store.bytes;
    return bytes;
  }

  /** Positions per sequence that all layers of a run have room for, when the longest sequence comes to be so long. */
  capacityFor(longest: number): number {
    const known = this.#stores.values().next().value?.capacity ?? 0;
    return longest <= known ? known : Math.max(16, 2 ** Math.ceil(Math.log2(longest)));
  }

  /** The buffers of one layer. @param keySize values of the keys of one position */
  reserve(layer: number, capacity: number, keySize: number, valueSize: number): Store {
    this.#alive();
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

  /** The rows of a layer with spans. @param begins whether the queries of the run read its own keys and values */
  reserveSpans(
    layer: number,
    spans: readonly (LayerSpans | undefined)[],
    shape: SpanStoreShape,
    sequences: readonly SequenceSpan[],
    begins: boolean,
  ): ReturnType<SpanStore["reserve"]> {
    this.#alive();
    const store = this.#spanStores.get(layer) ?? new SpanStore(this.#gpu, spans, shape);
    this.#spanStores.set(layer, store);
    const longest = Math.max(...sequences.map(({ tokens, past }) => past + tokens));
    const added = begins ? 0 : Math.max(...sequences.map(({ tokens }) => tokens));
    return store.reserve(this.#lengths, longest, added);
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
    for (const store of this.#spanStores.values()) store.dispose();
    this.#spanStores.clear();
    this.#onDispose(this);
  }

  #alive(): void {
    if (!this.#disposed) return;
    throw new CoppiceError("COPPICE_BACKEND_DISPOSED", "the cache was disposed while a run used it");
  }
}
