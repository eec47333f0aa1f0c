import { type MlpSpec, mergeRows, roundToStored, type TensorRef } from "@coppice/core";
import { type MlpPart, mlpParts } from "@coppice/onnx";
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
   * The expert with weights Σ_j `row[j]` times expert j, biases too, rounded as they would be stored, so that it
   * equals the exported one.
   */
  merged(
    layer: number,
    row: readonly number[],
    specs: readonly MlpSpec[],
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
    const first = experts[0] as MlpWeights;
    const entry = Object.fromEntries(
      mlpParts
        .filter((part) => first[part] !== undefined)
        .map((part) => [part, this.#merge(part, row, specs, experts)]),
    ) as unknown as MlpWeights;
    this.#add(key, entry);
    return entry;
  }

  #merge(
    part: MlpPart,
    row: readonly number[],
    specs: readonly MlpSpec[],
    experts: readonly MlpWeights[],
  ): Tensor {
    const tensors = experts.map((expert) => expert[part] as Tensor);
    const first = tensors[0] as Tensor;
    const values = new Float32Array(first.size);
    mergeRows(
      tensors.map(({ data }) => data as Float32Array),
      row,
      values,
    );
    roundToStored(values, specs[0]?.[part] as TensorRef);
    return new this.#runtime.Tensor("float32", values, first.dims);
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

function bytesOf(weights: MlpWeights): number {
  return mlpParts.reduce((bytes, part) => bytes + 4 * (weights[part]?.size ?? 0), 0);
}
