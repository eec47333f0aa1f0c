import { type AttentionMethod, type DecodeView, definePlugin, type KeyPages } from "@coppice/core";
import * as v from "valibot";
import { descending, softmax } from "./covering.js";

/** Options of the plugin `page-topk`. */
export interface PageTopkOptions {
  /** Keys that a head reads per step, in whole pages; default 1024. */
  readonly budget?: number;
  /** Keys per page; default 16. */
  readonly pageSize?: number;
  /** First layers that read everything; default 2. */
  readonly denseLayers?: number;
}

declare module "@coppice/core" {
  interface AttentionPlugins {
    "page-topk": PageTopkOptions;
  }
}

/** Fewer pages than this are worth no choice. */
const leastPages = 3;

/**
 * Reads only some pages of keys at each step of decoding (Quest, arXiv 2406.10774): those for which the largest score that any key
 * within the channelwise bounds of the page could have is highest. The prompt sees everything, and keys are all kept.
 */
export const pageTopk = definePlugin({
  kind: "attention",
  name: "page-topk",
  contract: 1,
  summary: "Reads the pages of keys that may matter most at each step of decoding (Quest).",
  reference: "https://arxiv.org/abs/2406.10774",
  options: v.strictObject({
    budget: v.exactOptional(v.pipe(v.number(), v.safeInteger(), v.minValue(1)), 1024),
    pageSize: v.exactOptional(v.pipe(v.number(), v.safeInteger(), v.minValue(1), v.maxValue(4096)), 16),
    denseLayers: v.exactOptional(v.pipe(v.number(), v.safeInteger(), v.minValue(0)), 2),
  }),
  create: (options): AttentionMethod => ({
    needs: { runner: false, weights: false, samples: false },
    masker() {
      const chooser = new PageChooser(options);
      return { decode: (view) => chooser.choose(view) };
    },
  }),
});

/** Chooses pages for one cache. Bounds of full pages are computed once. */
export class PageChooser {
  readonly #options: Required<PageTopkOptions>;
  /** By layer and sequence. */
  readonly #bounds = new Map<string, PageBounds>();

  constructor(options: Required<PageTopkOptions>) {
    this.#options = options;
  }

  choose(view: DecodeView): KeyPages | undefined {
    const { budget, pageSize, denseLayers } = this.#options;
    const pages = Math.ceil(view.positions / pageSize);
    const kept = Math.max(leastPages, Math.floor(budget / pageSize));
    if (view.layer < denseLayers || pages <= kept) return undefined;
    const id = `${view.layer} ${view.sequence}`;
    const bounds = this.#bounds.get(id) ?? new PageBounds(pageSize, view.kvHeads * view.keyDim);
    this.#bounds.set(id, bounds);
    bounds.extend(view.keys, view.positions);
    const heads = Array.from({ length: view.kvHeads }, (_, kvHead) => {
      const scores = groupScores(view, kvHead, bounds, pages);
      // The newest page is always read.
      scores[pages - 1] = Number.POSITIVE_INFINITY;
      return descending(scores).slice(0, kept).sort();
    });
    return { pageSize, heads };
  }
}

/** Channelwise smallest and largest keys of pages, [pages, channels] each. */
class PageBounds {
  readonly #pageSize: number;
  readonly #channels: number;
  #full = 0;
  low = new Float32Array(0);
  high = new Float32Array(0);

  constructor(pageSize: number, channels: number) {
    this.#pageSize = pageSize;
    this.#channels = channels;
  }

  /** Takes in keys that are new, [positions, channels]; the last page may change until it is full. */
  extend(keys: Float32Array, positions: number): void {
    const pages = Math.ceil(positions / this.#pageSize);
    if (this.low.length < pages * this.#channels) {
      this.low = grown(this.low, 2 * pages * this.#channels);
      this.high = grown(this.high, 2 * pages * this.#channels);
    }
    for (let page = this.#full; page < pages; page++) this.#measure(page, keys, positions);
    this.#full = Math.floor(positions / this.#pageSize);
  }

  #measure(page: number, keys: Float32Array, positions: number): void {
    const channels = this.#channels;
    const first = page * this.#pageSize;
    const last = Math.min(positions, first + this.#pageSize);
    for (let channel = 0; channel < channels; channel++) {
      let [low, high] = [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY];
      for (let at = first; at < last; at++) {
        const key = keys[at * channels + channel] as number;
        low = Math.min(low, key);
        high = Math.max(high, key);
      }
      this.low[page * channels + channel] = low;
      this.high[page * channels + channel] = high;
    }
  }
}

function grown(values: Float32Array, length: number): Float32Array<ArrayBuffer> {
  const larger = new Float32Array(length);
  larger.set(values);
  return larger;
}

/**
 * How much each page may matter to the query heads that read a KV head: softmax over pages of the bound
 * `scale * sum_d max(q_d low_d, q_d high_d)`, and of the heads the largest.
 */
function groupScores(view: DecodeView, kvHead: number, bounds: PageBounds, pages: number): Float64Array {
  const { heads, kvHeads, keyDim, queries, scale } = view;
  const group = heads / kvHeads;
  const most = new Float64Array(pages);
  const own = new Float64Array(pages);
  for (let head = kvHead * group; head < (kvHead + 1) * group; head++) {
    for (let page = 0; page < pages; page++) {
      const at = (page * kvHeads + kvHead) * keyDim;
      let bound = 0;
      for (let d = 0; d < keyDim; d++) {
        const query = queries[head * keyDim + d] as number;
        bound += query * ((query > 0 ? bounds.high[at + d] : bounds.low[at + d]) as number);
      }
      own[page] = scale * bound;
    }
    softmax(own);
    for (let page = 0; page < pages; page++) most[page] = Math.max(most[page] as number, own[page] as number);
  }
  return most;
}
