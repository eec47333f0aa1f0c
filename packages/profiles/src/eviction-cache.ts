/**
 * A cache that makes room by evicting what has the lowest priority, of any sizes: the one mechanism of LRU, LFU and
 * Belady, which differ in their priorities. Items are 0 to n - 1; a binary heap of those inside.
 */
export class EvictionCache {
  readonly #sizes: ArrayLike<number>;
  readonly #capacity: number;
  #room: number;
  readonly #heap: number[] = [];
  /** Item -> its place in the heap, -1 outside. */
  readonly #places: Int32Array;
  readonly #priorities: Float64Array;

  /** @param sizes of every item, in the unit of `capacity` */
  constructor(sizes: ArrayLike<number>, capacity: number) {
    this.#sizes = sizes;
    this.#capacity = capacity;
    this.#room = capacity;
    this.#places = new Int32Array(sizes.length).fill(-1);
    this.#priorities = new Float64Array(sizes.length);
  }

  /**
   * Uses an item, which is inside afterwards unless it is larger than the whole cache.
   * @param priority from now on
   * @returns true when it was inside
   */
  use(item: number, priority: number): boolean {
    const size = this.#sizes[item] as number;
    this.#priorities[item] = priority;
    const place = this.#places[item] as number;
    if (place >= 0) {
      this.#sink(this.#rise(place));
      return true;
    }
    if (size > this.#capacity) return false;
    while (this.#room < size) this.#evict();
    this.#room -= size;
    this.#places[item] = this.#heap.length;
    this.#heap.push(item);
    this.#rise(this.#heap.length - 1);
    return false;
  }

  #evict(): void {
    const [item] = this.#heap as [number];
    const last = this.#heap.pop() as number;
    this.#places[item] = -1;
    this.#room += this.#sizes[item] as number;
    if (last === item) return;
    this.#heap[0] = last;
    this.#places[last] = 0;
    this.#sink(0);
  }

  #rise(start: number): number {
    let at = start;
    while (at > 0 && this.#less(at, (at - 1) >> 1)) {
      this.#swap(at, (at - 1) >> 1);
      at = (at - 1) >> 1;
    }
    return at;
  }

  #sink(start: number): void {
    for (let at = start; ; ) {
      let least = at;
      for (const child of [2 * at + 1, 2 * at + 2]) {
        if (child < this.#heap.length && this.#less(child, least)) least = child;
      }
      if (least === at) return;
      this.#swap(at, least);
      at = least;
    }
  }

  #less(a: number, b: number): boolean {
    const priority = (place: number) => this.#priorities[this.#heap[place] as number] as number;
    return priority(a) < priority(b);
  }

  #swap(a: number, b: number): void {
    const [first, second] = [this.#heap[a] as number, this.#heap[b] as number];
    this.#heap[a] = second;
    this.#heap[b] = first;
    this.#places[second] = a;
    this.#places[first] = b;
  }
}
