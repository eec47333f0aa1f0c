import type { AttentionMasker, KvCache } from "@coppice/core";
import type { CacheGroup } from "./cache-group.js";
import type { PlanSpans } from "./head-groups.js";

/**
 * Rotated keys and values of every layer. What a run adds counts when it commits at its end; a run that fails leaves the
 * cache as it was.
 */
export class CpuCache implements KvCache {
  readonly owner: object;
  /** What the heads of each sequence see; undefined: as the model is. */
  readonly spans: readonly (PlanSpans | undefined)[];
  /** What decides in every run what is seen. */
  readonly masker: AttentionMasker | undefined;
  #lengths: number[];
  #groups: readonly CacheGroup[] | undefined;
  #disposed = false;

  constructor(owner: object, spans: readonly (PlanSpans | undefined)[], masker?: AttentionMasker) {
    this.owner = owner;
    this.spans = spans;
    this.masker = masker;
    this.#lengths = new Array<number>(spans.length).fill(0);
  }

  get lengths(): readonly number[] {
    return this.#lengths;
  }

  get bytes(): number {
    return (this.#groups ?? []).reduce((sum, { bytes }) => sum + bytes, 0);
  }

  get disposed(): boolean {
    return this.#disposed;
  }

  /** The groups, made by `make` at the first run and kept. */
  groups(make: () => readonly CacheGroup[]): readonly CacheGroup[] {
    this.#groups ??= make();
    return this.#groups;
  }

  commit(added: readonly Int32Array[]): void {
    for (const group of this.#groups ?? []) group.settle(true);
    this.#lengths = this.#lengths.map((length, s) => length + (added[s] as Int32Array).length);
  }

  rollBack(): void {
    for (const group of this.#groups ?? []) group.settle(false);
  }

  dispose(): void {
    this.#disposed = true;
    this.#groups = [];
  }
}
