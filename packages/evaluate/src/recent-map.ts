/** A map of bounded size that drops what was not used for longest. */
export class RecentMap<V> {
  readonly #entries = new Map<string, V>();
  readonly #most: number;
  readonly #onDrop: ((value: V) => void) | undefined;

  constructor(most: number, onDrop?: (value: V) => void) {
    this.#most = most;
    this.#onDrop = onDrop;
  }

  get(key: string): V | undefined {
    const value = this.#entries.get(key);
    if (value === undefined) return undefined;
    this.#entries.delete(key);
    this.#entries.set(key, value);
    return value;
  }

  set(key: string, value: V): void {
    this.delete(key);
    this.#entries.set(key, value);
    const [oldest] = this.#entries.keys();
    if (this.#entries.size > this.#most && oldest !== undefined) this.delete(oldest);
  }

  delete(key: string): void {
    const value = this.#entries.get(key);
    if (value === undefined) return;
    this.#entries.delete(key);
    this.#onDrop?.(value);
  }

  clear(): void {
    for (const key of [...this.#entries.keys()]) this.delete(key);
  }
}
