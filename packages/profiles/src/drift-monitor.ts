import { CoppiceError, checkWholeNumber, type LayerTap } from "@coppice/core";
import type { FullRouter } from "./full-router.js";

export interface DriftOptions {
  /** Of all MoE layers (`readRouters`). */
  readonly routers: ReadonlyMap<number, FullRouter>;
  /** Layer -> experts that are there (`PartialModel.experts`). */
  readonly kept: ReadonlyMap<number, readonly number[]>;
  /** Mean dropped mass, 0 to 1, above which the tokens are not what the experts were chosen for. */
  readonly threshold: number;
  /** Tokens that the mean is taken over, the latest ones. @default 64 */
  readonly window?: number;
  /** Fewest tokens to judge by. @default 8 */
  readonly least?: number;
}

export interface Drift {
  /** Mean over the window's tokens and the layers of the softmax probability of experts that are not there. */
  readonly dropped: number;
  /** Tokens in the window. */
  readonly tokens: number;
  readonly drifted: boolean;
}

/**
 * Watches how much of the routers' probability goes to experts that are not loaded: Σ p_j over these, with p the softmax
 * of all experts' logits as in statistics, whatever the routing order. It is worked out from the inputs of the MoE
 * blocks, because a model of some experts computes no logits of the others.
 *
 * Call `observe` for every layer of a run and `settle` after it.
 */
export class DriftMonitor {
  /** What a tap must show. */
  static readonly fields = ["input"] as const;
  readonly #routers: DriftOptions["routers"];
  readonly #kept: DriftOptions["kept"];
  readonly #threshold: number;
  readonly #least: number;
  /** Ring of the latest tokens. */
  readonly #window: Float64Array;
  #seen = 0;
  /** Of the run that goes on, by row: sum over layers, and their number. */
  #sums: number[] = [];
  #layers: number[] = [];

  /** @throws COPPICE_USAGE */
  constructor({ routers, kept, threshold, window = 64, least = 8 }: DriftOptions) {
    if (!(threshold >= 0 && threshold <= 1)) {
      throw new CoppiceError("COPPICE_USAGE", `the threshold is ${threshold}, expected 0 to 1`);
    }
    this.#routers = routers;
    this.#kept = kept;
    this.#threshold = threshold;
    this.#window = new Float64Array(checkWholeNumber("window", window));
    this.#least = Math.min(window, checkWholeNumber("least", least));
  }

  observe({ layer, tokens, rows, input }: LayerTap): void {
    const router = this.#routers.get(layer);
    const kept = this.#kept.get(layer);
    if (!router || !kept || !input) return;
    const logits = router.logits(input, tokens);
    for (let token = 0; token < tokens; token++) {
      const row = rows[token] as number;
      const start = token * router.experts;
      const dropped = droppedShare(logits.subarray(start, start + router.experts), kept);
      this.#sums[row] = (this.#sums[row] ?? 0) + dropped;
      this.#layers[row] = (this.#layers[row] ?? 0) + 1;
    }
  }

  /** Takes the tokens of the run into the window, in their packed order. */
  settle(): Drift {
    this.#sums.forEach((sum, row) => {
      this.#window[this.#seen++ % this.#window.length] = sum / (this.#layers[row] as number);
    });
    this.#sums = [];
    this.#layers = [];
    const tokens = Math.min(this.#seen, this.#window.length);
    const sum = this.#window.subarray(0, tokens).reduce((all, value) => all + value, 0);
    const dropped = tokens === 0 ? 0 : sum / tokens;
    return { dropped, tokens, drifted: tokens >= this.#least && dropped > this.#threshold };
  }
}

/** Softmax probability of the experts that are not in `kept`. */
function droppedShare(logits: Float32Array, kept: readonly number[]): number {
  let most = Number.NEGATIVE_INFINITY;
  for (const logit of logits) most = Math.max(most, logit);
  let all = 0;
  for (const logit of logits) all += Math.exp(logit - most);
  let there = 0;
  for (const expert of kept) there += Math.exp((logits[expert] as number) - most);
  return Math.max(0, 1 - there / all);
}
