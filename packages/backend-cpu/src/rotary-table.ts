import type { RotarySpec } from "@coppice/core";
import type { Tensor } from "onnxruntime-node";
import type { Runtime } from "./sessions.js";

/**
 * cos and sin of positions, [position, padded / 2], grown by doubling; dimensions that are filled in do not turn.
 *
 * Frequencies and angles are rounded to float32 as the reference implementations do: far into a context, exact
 * angles would differ from those the model was trained with by more than the tolerance of a logit.
 */
export class RotaryTable {
  readonly #runtime: Runtime;
  readonly #frequencies: Float32Array;
  #tables: { readonly cos: Tensor; readonly sin: Tensor } | undefined;

  constructor(runtime: Runtime, { theta, dimensions }: RotarySpec, padded: number) {
    this.#runtime = runtime;
    this.#frequencies = Float32Array.from({ length: padded / 2 }, (_, i) =>
      i < dimensions / 2 ? 1 / Math.fround(theta ** Math.fround((2 * i) / dimensions)) : 0,
    );
  }

  /** Tables of at least `count` positions. */
  tables(count: number): { readonly cos: Tensor; readonly sin: Tensor } {
    const known = this.#tables?.cos.dims[0] ?? 0;
    if (this.#tables && known >= count) return this.#tables;
    const positions = Math.max(count, 2 * known, 128);
    const half = this.#frequencies.length;
    const cos = new Float32Array(positions * half);
    const sin = new Float32Array(positions * half);
    for (let i = 0; i < cos.length; i++) {
      const angle = Math.fround(Math.floor(i / half) * (this.#frequencies[i % half] as number));
      cos[i] = Math.cos(angle);
      sin[i] = Math.sin(angle);
    }
    const { Tensor } = this.#runtime;
    this.#tables = {
      cos: new Tensor("float32", cos, [positions, half]),
      sin: new Tensor("float32", sin, [positions, half]),
    };
    return this.#tables;
  }
}
