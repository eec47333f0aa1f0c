import { createHash } from "node:crypto";
import {
  addDelta,
  downDelta,
  type LayerPlan,
  type MlpSpec,
  mergeRows,
  mergeUnits,
  onlyExpert,
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
  /** Whose changes of down projections apply, and which of them. */
  readonly change?: { readonly plan: LayerPlan; readonly slot: number } | undefined;
}

/** What is added to a down projection. */
interface Change {
  /** Equal for equal deltas, empty for none. */
  readonly key: string;
  /** [hidden, width]; decoded when it is asked for, unless it just was to know its key. */
  delta(): Float32Array | undefined;
}

const noChange: Change = { key: "", delta: () => undefined };

interface Entry {
  readonly weights: MlpWeights;
  /** Of the tensors that it does not share with the model's experts. */
  readonly bytes: number;
}

/** Keys longer than this are hashed. */
const mostKeyLength = 256;

/**
 * Merged and changed experts by what they are made of, least recently used first, within a number of bytes.
 *
 * The unit is one slot, not one layer: candidates of a search differ in few rows of their merging matrices.
 */
export class MergeCache {
  readonly #runtime: Runtime;
  readonly #limit: number;
  readonly #entries = new Map<string, Entry>();
  /** Plans do not change, so the units of one that runs often are written out once. */
  readonly #unitKeys = new WeakMap<readonly UnitSource[], string>();
  /** Keys of the changes of every slot, of plans that were met. */
  readonly #changeKeys = new WeakMap<LayerPlan, string[]>();
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
    const { units } = source;
    const change = this.#changeOf(source);
    const single = units ? undefined : onlyExpert(source.row);
    const whole = single === undefined ? undefined : (experts[single] as MlpWeights);
    if (whole && change.key === "") return whole;
    const key = this.#keyOf(layer, source, change);
    const known = this.#entries.get(key);
    if (known) {
      this.#entries.delete(key);
      this.#entries.set(key, known);
      return known.weights;
    }
    const first = experts[0] as MlpWeights;
    const made = mlpParts.filter((part) => first[part] && (!whole || part === "down"));
    const own = Object.fromEntries(
      made.map((part) => [part, this.#merge(part, source, change, specs, experts)]),
    ) as unknown as MlpWeights;
    const weights = { ...whole, ...own };
    this.#add(key, { weights, bytes: bytesOf(own) });
    return weights;
  }

  #keyOf(layer: number, { row, units }: SlotSource, change: Change): string {
    const key = `${layer}:${row.join(",")}:${units ? this.#unitKey(units) : ""}:${change.key}`;
    return key.length > mostKeyLength ? hashed(key) : key;
  }

  #changeOf({ change }: SlotSource): Change {
    if (!change) return noChange;
    const { plan, slot } = change;
    const keys = this.#changeKeys.get(plan) ?? [];
    this.#changeKeys.set(plan, keys);
    const known = keys[slot];
    if (known !== undefined) return { key: known, delta: () => downDelta(plan, slot) };
    const delta = downDelta(plan, slot);
    const key = delta ? hashed(delta) : "";
    keys[slot] = key;
    return { key, delta: () => delta };
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
    change: Change,
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
    const delta = part === "down" ? change.delta() : undefined;
    if (delta) addDelta(values, delta);
    roundToStored(values, specs[0]?.[part] as TensorRef);
    return new this.#runtime.Tensor("float32", values, first.dims);
  }

  #add(key: string, entry: Entry): void {
    const { bytes } = entry;
    if (bytes > this.#limit) return;
    for (const [oldest, value] of this.#entries) {
      if (this.#bytes + bytes <= this.#limit) break;
      this.#entries.delete(oldest);
      this.#bytes -= value.bytes;
    }
    this.#entries.set(key, entry);
    this.#bytes += bytes;
  }
}

function hashed(data: string | Float32Array): string {
  return createHash("sha256").update(data).digest("base64");
}

function bytesOf(weights: MlpWeights): number {
  return mlpParts.reduce((bytes, part) => bytes + 4 * (weights[part]?.size ?? 0), 0);
}
