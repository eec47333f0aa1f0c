import type { LayerMemory } from "@coppice/core";

/**
 * Memories of layers by the prefix that a run started from, one per batch, within a budget of bytes; the least recently
 * used leave. A search starts at the same prefix again and again: every child of a plan that differs from it in that layer first.
 */
export class MemoryCache {
  /** In order of use, the oldest first. */
  readonly #entries = new Map<string, readonly LayerMemory[]>();
  readonly #budget: number;
  readonly #create: (() => LayerMemory) | undefined;

  /** @param create makes a memory; absent where the runner has none */
  constructor(budgetBytes: number, create: (() => LayerMemory) | undefined) {
    this.#budget = budgetBytes;
    this.#create = budgetBytes > 0 ? create : undefined;
  }

  /** What all memories hold. */
  get bytes(): number {
    return [...this.#entries.values()].reduce((sum, memories) => sum + bytesOf(memories), 0);
  }

  /** The memories of a prefix, new ones where there are none. */
  of(key: string, batches: number): readonly LayerMemory[] {
    const create = this.#create;
    if (!create) return [];
    const memories = this.#entries.get(key) ?? Array.from({ length: batches }, create);
    this.#entries.delete(key);
    this.#entries.set(key, memories);
    return memories;
  }

  /** Keeps the budget; to be called after every run with a memory, which may have grown. */
  trim(): void {
    let bytes = this.bytes;
    for (const [key, memories] of this.#entries) {
      if (bytes <= this.#budget) return;
      bytes -= bytesOf(memories);
      this.#entries.delete(key);
      for (const memory of memories) memory.dispose();
    }
  }

  clear(): void {
    for (const memories of this.#entries.values()) for (const memory of memories) memory.dispose();
    this.#entries.clear();
  }
}

function bytesOf(memories: readonly LayerMemory[]): number {
  return memories.reduce((sum, { bytes }) => sum + bytes, 0);
}
