import type { TensorRef, WeightReader } from "@coppice/core";

/** Gives other values for some weights. */
export class ReplacedWeights implements WeightReader {
  readonly #weights: WeightReader;
  readonly #keeps: boolean;
  readonly #read = new Map<string, Float32Array>();
  #replaced: ReadonlyMap<string, Float32Array> = new Map();

  /** @param keeps whether every weight is read once and then kept */
  constructor(weights: WeightReader, keeps = true) {
    this.#weights = weights;
    this.#keeps = keeps;
  }

  /** From now on these values are given for these weights, and the others as they are. */
  replace(values: Iterable<readonly [TensorRef, Float32Array]>): void {
    this.#replaced = new Map(Array.from(values, ([ref, own]) => [keyOf(ref), own]));
  }

  async read(
    ref: TensorRef,
    options: { into?: Float32Array; signal?: AbortSignal } = {},
  ): Promise<Float32Array> {
    const { into, signal } = options;
    const key = keyOf(ref);
    let values = this.#replaced.get(key) ?? this.#read.get(key);
    if (!values) {
      values = await this.#weights.read(ref, signal ? { signal } : {});
      if (this.#keeps) this.#read.set(key, values);
    }
    if (!into) return values.slice();
    into.set(values);
    return into;
  }
}

/** Tensors that are parts of one stored tensor have its name, and differ in their views. */
function keyOf({ name, view }: TensorRef): string {
  return JSON.stringify([name, view?.offset, view?.strides]);
}
