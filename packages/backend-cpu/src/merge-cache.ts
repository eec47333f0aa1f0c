import { createHash } from "node:crypto";
import {
  type MlpSpec,
  mergeRows,
  mergeUnits,
  roundToStored,
  type TensorRef,
  type UnitSource,
} from "@coppice/core";
import { type MlpPart, mlpParts } from "@coppice/onnx";
import type { Tensor } from "onnxruntime-node";
import type { Runtime } from "./sessions.js";
import type { MlpWeights } from "./weights.js";

/** What a slot is made of. */
export interface SlotSource {
  /** Coefficients of all experts. */
  readonly row: readonly number[];
  /** Where the slot is put together unit by unit; `row` then describes its down bias alone. */
  readonly units?: readonly UnitSource[] | null | undefined;
}

/** Keys longer than this are hashed. */
const mostKeyLength = 256;

/**
 * Merged experts by what they are merged from, least recently used first, within a number of bytes.
 *
 * The unit is one slot, not one layer: candidates of a search differ in few rows of their merging matrices.
 */
export class MergeCache {
  readonly #runtime: Runtime;
  readonly #limit: number;
  readonly #entries = new Map<string, MlpWeights>();
  /** Plans do not change, so the units of one that runs often are written out once. */
  readonly #unitKeys = new WeakMap<readonly UnitSource[], string>();
  #bytes = 0;

  constructor(runtime: Runtime, limit: number) {
    this.#runtime = runtime;
    this.#limit = limit;
  }

  get bytes(): number {
    return this.#bytes;
  }

  /** The expert that `source` describes, rounded as it would be stored, so that it equals the exported one. */
  merged(
    layer: number,
    source: SlotSource,
    specs: readonly MlpSpec[],
    experts: readonly MlpWeights[],
  ): MlpWeights {
    const single = onlyExpert(source.row);
    if (single !== undefined && !source.units) return experts[single] as MlpWeights;
    const key = this.#keyOf(layer, source);
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
        .map((part) => [part, this.#merge(part, source, specs, experts)]),
    ) as unknown as MlpWeights;
    this.#add(key, entry);
    return entry;
  }

  #keyOf(layer: number, { row, units }: SlotSource): string {
    const key = `${layer}:${row.join(",")}:${units ? this.#unitKey(units) : ""}`;
    return key.length > mostKeyLength ? hashed(key) : key;
  }

  #unitKey(units: readonly UnitSource[]): string {
    const known = this.#unitKeys.get(units);
    if (known !== undefined) return known;
    const key = hashed(
      JSON.stringify(units.map(({ expert, to, rows, columns }) => [expert, to, rows, columns])),
    );
    this.#unitKeys.set(units, key);
    return key;
  }

  #merge(
    part: MlpPart,
    { row, units }: SlotSource,
    specs: readonly MlpSpec[],
    experts: readonly MlpWeights[],
  ): Tensor {
    const tensors = experts.map((expert) => expert[part] as Tensor);
    const first = tensors[0] as Tensor;
    const values = new Float32Array(first.size);
    const arrays = tensors.map(({ data }) => data as Float32Array);
    if (units && part !== "downBias") {
      const sources = units.map((source) => ({ source, values: arrays[source.expert] as Float32Array }));
      mergeUnits(part, sources, specs[0]?.width as number, values);
    } else mergeRows(arrays, row, values);
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

/** The expert that a row leaves as it is. */
function onlyExpert(row: readonly number[]): number | undefined {
  const single = row.findIndex((value) => value !== 0);
  const only = row[single] === 1 && row.every((value, j) => j === single || value === 0);
  return only ? single : undefined;
}

function hashed(text: string): string {
  return createHash("sha256").update(text).digest("base64");
}

function bytesOf(weights: MlpWeights): number {
  return mlpParts.reduce((bytes, part) => bytes + 4 * (weights[part]?.size ?? 0), 0);
}
