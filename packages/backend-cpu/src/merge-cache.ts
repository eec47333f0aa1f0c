import { type GatedMlpSpec, mergeRows, roundToDtype, type TensorRef } from "@coppice/core";
import type { Tensor } from "onnxruntime-node";
import type { Runtime } from "./sessions.js";
import type { MlpWeights } from "./weights.js";

/**
 * Merged experts by what they are merged from, least recently used first, within a number of bytes.
 *
 * The unit is one slot, not one layer: candidates of a search differ in few rows of their merging matrices.
 */
export class MergeCache {
  readonly #runtime: Runtime;
  readonly #limit: number;
  readonly #entries = new Map<string, MlpWeights>();
  #bytes = 0;

  constructor(runtime: Runtime, limit: number) {
    this.#runtime = runtime;
    this.#limit = limit;
  }

  get bytes(): number {
    return this.#bytes;
  }

  /**
   * The expert with weights Σ_j `row[j]` times expert j, rounded to the dtype in which it would be stored, so that it
   * equals the exported one.
   */
  merged(
    layer: number,
    row: readonly number[],
    specs: readonly GatedMlpSpec[],
    experts: readonly MlpWeights[],
  ): MlpWeights {
    const single = row.findIndex((value) => value !== 0);
    if (single >= 0 && row[single] === 1 && row.every((value, j) => j === single || value === 0)) {
      return experts[single] as MlpWeights;
    }
    const key = `${layer}:${row.join(",")}`;
    const known = this.#entries.get(key);
    if (known) {
      this.#entries.delete(key);
      this.#entries.set(key, known);
      return known;
    }
    const merge = (part: keyof MlpWeights): Tensor => {
      const sources = experts.map((expert) => expert[part].data as Float32Array);
      const first = sources[0] as Float32Array;
      const values = new Float32Array(first.length);
      mergeRows(sources, row, values);
      roundToDtype(values, (specs[0] as Record<keyof MlpWeights, TensorRef>)[part].dtype);
      return new this.#runtime.Tensor("float32", values, (experts[0] as MlpWeights)[part].dims);
    };
    const entry = { gate: merge("gate"), up: merge("up"), down: merge("down") };
    this.#add(key, entry);
    return entry;
  }

  #add(key: string, entry: MlpWeights): void {
    const bytes = bytesOf(entry);
    if (bytes > this.#limit) return;
    for (const [oldest, value] of this.#entries) {
      if (this.#bytes + bytes <= this.#limit) break;
      this.#entries.delete(oldest);
      this.#bytes -= bytesOf(value);
    }
    this.#entries.set(key, entry);
    this.#bytes += bytes;
  }
}

function bytesOf({ gate, up, down }: MlpWeights): number {
  return 4 * (gate.size + up.size + down.size);
}
