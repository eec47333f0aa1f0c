import { canonicalPlan, layerKey, type MoeModel, type Plan } from "@coppice/core";
import { sha256 } from "@noble/hashes/sha2.js";
import { bytesToHex, utf8ToBytes } from "@noble/hashes/utils.js";
import type { Boundary } from "./evidence.js";

/** Prefixes remembered as seen: some 20 MB of keys, thousands of candidates. */
const seenLimit = 200_000;

/**
 * Keys of every layer boundary of a plan: entry `l` is equal for two plans exactly when their layers before `l`
 * compute the same, so the activations at that boundary are the same too.
 */
export function prefixKeys(plan: Plan, model: MoeModel): string[] {
  const layers = new Map(canonicalPlan(plan, model).layers.map((layer) => [layer.layer, layer]));
  const keys = [""];
  for (let l = 0; l < model.layers.length; l++) {
    const before = keys[l] as string;
    const layer = layers.get(l);
    keys.push(layer ? bytesToHex(sha256(utf8ToBytes(`${before}\n${layerKey(layer)}`))).slice(0, 32) : before);
  }
  return keys.map((key, l) => `${l}:${key}`);
}

interface Entry {
  readonly hidden: readonly Boundary[];
  /** Runs that start from it now. */
  uses: number;
  /** No longer in the cache; the last of its runs disposes it. */
  isOut: boolean;
}

/** What a run starts from. */
export interface FoundBoundary {
  readonly layer: number;
  readonly hidden: readonly Boundary[];
  /** To be called when the run is over. */
  release(): void;
}

/**
 * Activations at layer boundaries, per prefix of layer plans, within a budget of bytes.
 *
 * Every boundary may be stored: a search changes its candidates at any layer. As long as there is room all new ones
 * are. When the budget is full, only prefixes that were met before are let in, and the least recently used leaves:
 * most candidates die without offspring, and must not push out those that have some. A hit refreshes all shorter
 * prefixes of its plan as well, since further offspring may start at any of them.
 */
export class PrefixCache {
  /** In order of use, the oldest first. */
  readonly #entries = new Map<string, Entry>();
  readonly #seen = new Set<string>();
  readonly #capacity: number;

  /** @param entryBytes bytes of one boundary, the same for all */
  constructor(budgetBytes: number, entryBytes: number) {
    this.#capacity = entryBytes > 0 ? Math.floor(budgetBytes / entryBytes) : 0;
  }

  /** Boundaries held. */
  get size(): number {
    return this.#entries.size;
  }

  /** The deepest boundary of a plan that is held, never the last one. */
  find(keys: readonly string[]): FoundBoundary | undefined {
    let found: { layer: number; entry: Entry } | undefined;
    for (let layer = 1; layer < keys.length - 1; layer++) {
      const key = keys[layer] as string;
      const entry = this.#entries.get(key);
      if (!entry) continue;
      this.#entries.delete(key);
      this.#entries.set(key, entry);
      found = { layer, entry };
    }
    if (!found) return undefined;
    const { layer, entry } = found;
    entry.uses++;
    const release = () => {
      entry.uses--;
      disposeUnused(entry);
    };
    return { layer, hidden: entry.hidden, release };
  }

  /** The boundaries behind `from` that are worth storing when the plan with these keys runs. */
  worthStoring(keys: readonly string[], from: number): number[] {
    if (this.#capacity === 0) return [];
    let room = this.#capacity - this.#entries.size;
    const layers: number[] = [];
    for (let layer = from + 1; layer < keys.length - 1; layer++) {
      const key = keys[layer] as string;
      if (this.#seen.has(key) || room > 0) {
        layers.push(layer);
        room--;
      }
      if (this.#seen.size >= seenLimit) this.#seen.clear();
      this.#seen.add(key);
    }
    // More than fit would push each other out.
    return layers.slice(-this.#capacity);
  }

  store(key: string, hidden: readonly Boundary[]): void {
    this.#remove(key);
    this.#entries.set(key, { hidden, uses: 0, isOut: false });
    while (this.#entries.size > this.#capacity) {
      const [oldest] = this.#entries.keys();
      this.#remove(oldest as string);
    }
  }

  clear(): void {
    for (const key of [...this.#entries.keys()]) this.#remove(key);
  }

  #remove(key: string): void {
    const entry = this.#entries.get(key);
    if (!entry) return;
    this.#entries.delete(key);
    entry.isOut = true;
    disposeUnused(entry);
  }
}

function disposeUnused({ hidden, uses, isOut }: Entry): void {
  if (isOut && uses === 0) disposeHeld(hidden);
}

/** Lets go of boundaries that a runner holds. */
export function disposeHeld(hidden: readonly Boundary[]): void {
  for (const one of hidden) if (!(one instanceof Float32Array)) one.dispose();
}
