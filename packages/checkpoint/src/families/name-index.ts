import type { TensorRef } from "@coppice/core";

/** Tensors of a checkpoint, found by name or by what their names begin with. */
export class NameIndex {
  readonly tensors: ReadonlyMap<string, TensorRef>;
  readonly #names: readonly string[];

  constructor(tensors: ReadonlyMap<string, TensorRef>) {
    this.tensors = tensors;
    this.#names = [...tensors.keys()].sort();
  }

  has(name: string): boolean {
    return this.tensors.has(name);
  }

  get(name: string): TensorRef | undefined {
    return this.tensors.get(name);
  }

  /** Names that begin with `prefix`, sorted. */
  under(prefix: string): string[] {
    const found: string[] = [];
    for (let i = this.#firstFrom(prefix); i < this.#names.length; i++) {
      const name = this.#names[i] as string;
      if (!name.startsWith(prefix)) break;
      found.push(name);
    }
    return found;
  }

  /** The first name, in their order, that begins with `prefix`. */
  first(prefix: string): string | undefined {
    const name = this.#names[this.#firstFrom(prefix)];
    return name?.startsWith(prefix) ? name : undefined;
  }

  /** True when some name begins with `prefix`. */
  any(prefix: string): boolean {
    return this.first(prefix) !== undefined;
  }

  #firstFrom(prefix: string): number {
    let low = 0;
    let high = this.#names.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.#names[middle] as string) < prefix) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}
