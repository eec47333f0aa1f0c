import type { LayerRange } from "@coppice/core";
import type { Collection } from "./collection.js";
import { type RangeCost, rangeCost, rangeMemory } from "./layer-ranges.js";

/** How long a layer-streamed pass takes, and what that was computed from. */
export interface StreamEstimate {
  /** Seconds that are left. */
  readonly seconds: number;
  /** Weights still to be read, and the speed that was measured. */
  readonly bytes: number;
  readonly bytesPerSecond: number;
  /** Runs of one token through one layer that are left, and their number per second in the layers that were measured. */
  readonly tokenLayers: number;
  readonly tokenLayersPerSecond: number;
  /** What was measured: tokens through layers, after loading them. */
  readonly measured: { readonly tokens: number; readonly layers: LayerRange };
  /** Times that weights are loaded and freed, with as many layers as fit. */
  readonly loads: number;
  /** Most bytes of hidden states on disk at once. */
  readonly diskBytes: number;
  /** Estimated bound of memory; backends that run a batch in pieces stay well below it. */
  readonly memoryBytes: number;
}

/** Measures loading and running, and says how long the rest takes: by bytes, and by tokens x parameters per token. */
export class StreamPace {
  readonly #collection: Collection;
  readonly #ranges: readonly LayerRange[];
  readonly #costs: ReadonlyMap<LayerRange, RangeCost>;
  readonly #bounds: Pick<StreamEstimate, "loads" | "diskBytes" | "memoryBytes">;
  readonly #tokens: number;
  /** Ranges that are loaded. */
  #loaded = 0;
  #read = { bytes: 0, seconds: 0 };
  /** Work in tokens x parameters. */
  #run = { work: 0, tokenLayers: 0, seconds: 0 };
  /** Tokens that went through the range that is loaded. */
  #done = 0;

  constructor(collection: Collection, ranges: readonly LayerRange[]) {
    this.#collection = collection;
    this.#ranges = ranges;
    const { model, source, allExperts } = collection;
    this.#tokens = source.tokens;
    this.#costs = new Map(
      ranges.map((range) => [range, rangeCost(model, range, allExperts === "all tokens")]),
    );
    this.#bounds = {
      loads: ranges.length,
      diskBytes: hiddenBytes(collection, ranges),
      memoryBytes: ranges.reduce((most, range) => Math.max(most, rangeMemory(collection, range)), 0),
    };
  }

  loaded(seconds: number): void {
    const { stored } = this.#cost(this.#ranges[this.#loaded] as LayerRange);
    this.#read = { bytes: this.#read.bytes + stored, seconds: this.#read.seconds + seconds };
    this.#loaded++;
    this.#done = 0;
  }

  /** A batch went through the range that is loaded. */
  ran(tokens: number, seconds: number): void {
    const range = this.#current;
    this.#done += tokens;
    // Dense layers in front of the others say little about those.
    if (!this.#hasExperts(range)) return;
    this.#run = {
      work: this.#run.work + tokens * this.#cost(range).applied,
      tokenLayers: this.#run.tokenLayers + tokens * (range.to - range.from),
      seconds: this.#run.seconds + seconds,
    };
  }

  /** Tokens x layers that are done, those before the first of the ranges included. */
  get done(): number {
    const { from, to } = this.#current;
    return this.#tokens * from + this.#done * (to - from);
  }

  /** Undefined until a layer with experts was measured. */
  estimate(): StreamEstimate | undefined {
    if (this.#run.seconds === 0) return undefined;
    const rest = this.#ranges.slice(this.#loaded);
    const bytes = rest.reduce((sum, range) => sum + this.#cost(range).stored, 0);
    const left = this.#tokens - this.#done;
    const current = this.#current;
    const work =
      left * this.#cost(current).applied +
      rest.reduce((sum, range) => sum + this.#tokens * this.#cost(range).applied, 0);
    const layersLeft = rest.reduce((sum, { from, to }) => sum + to - from, 0);
    const { bytes: read, seconds } = this.#read;
    return {
      seconds: (bytes * seconds) / read + (work * this.#run.seconds) / this.#run.work,
      bytes,
      bytesPerSecond: read / seconds,
      tokenLayers: left * (current.to - current.from) + this.#tokens * layersLeft,
      tokenLayersPerSecond: this.#run.tokenLayers / this.#run.seconds,
      measured: { tokens: this.#done, layers: current },
      ...this.#bounds,
    };
  }

  get #current(): LayerRange {
    return this.#ranges[this.#loaded - 1] as LayerRange;
  }

  #cost(range: LayerRange): RangeCost {
    return this.#costs.get(range) as RangeCost;
  }

  #hasExperts({ from, to }: LayerRange): boolean {
    return this.#collection.layers.some(({ index }) => index >= from && index < to);
  }
}

/** Most bytes of hidden states on disk at once: those that a range reads, beside those that it writes. */
export function hiddenBytes(
  { model, source }: Collection,
  ranges: readonly Pick<LayerRange, "from">[],
): number {
  const borders = ranges.filter(({ from }) => from > 0).length;
  return Math.min(2, borders) * source.tokens * model.hiddenSize * Float32Array.BYTES_PER_ELEMENT;
}
