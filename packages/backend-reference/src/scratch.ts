import { CoppiceError } from "@coppice/core";

/** Work arrays by name, kept between layers and runs so that inner loops allocate nothing. Contents are left over. */
export class Scratch {
  readonly #arrays = new Map<string, Float32Array>();

  /** The first `length` values of the array called `name`. */
  take(name: string, length: number): Float32Array {
    let array = this.#arrays.get(name);
    if (!array || array.length < length) {
      array = floats(length);
      this.#arrays.set(name, array);
    }
    return array.length === length ? array : array.subarray(0, length);
  }

  clear(): void {
    this.#arrays.clear();
  }
}

/** @throws COPPICE_BACKEND_FAILED when there is no memory for `length` values */
export function floats(length: number): Float32Array {
  try {
    return new Float32Array(length);
  } catch (cause) {
    throw new CoppiceError(
      "COPPICE_BACKEND_FAILED",
      `could not allocate ${length * 4} bytes for the activations of one run`,
      { cause, hint: "run fewer tokens at once" },
    );
  }
}
