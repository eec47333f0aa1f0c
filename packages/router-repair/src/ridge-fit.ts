import type { Fitted, SplitSample } from "./fit-state.js";
import { Ridge } from "./ridge.js";
import { type RouterValues, routerLogits } from "./router-values.js";
import { tokenTargets } from "./token-targets.js";

/** The largest leaves the rows nearly as they are, the smallest fits all that a thousand tokens show. */
const penalties = [1e-3, 1e-2, 1e-1, 1] as const;
const shares = [1, 0.5, 0.25] as const;

export interface RidgeStep {
  readonly found: Fitted | undefined;
  /** λ of `Ridge`. */
  readonly penalty: number;
  /** Share of the fitted change that is made. */
  readonly share: number;
}

/** Ridge fits of the change of rows, and of biases where there are any, to the change of logits that tokens ask for. */
export class RidgeFit {
  readonly #sample: SplitSample;
  readonly #hasBias: boolean;
  #ridge: Ridge | undefined;
  /** Those that are tried: all at first, then the one that was best. */
  #penalties: readonly number[] = penalties;

  constructor(sample: SplitSample) {
    this.#sample = sample;
    this.#hasBias = sample.block.router.bias !== undefined;
  }

  /** The best on the held-out part of all penalties and shares of the step. */
  fit(from: Fitted): RidgeStep {
    const { block, fit, hidden } = this.#sample;
    const errors = block.errors(block.route(from.logits, from.correction));
    const choice = block.choose(from.logits, from.correction);
    const { changes, weights } = tokenTargets(block, fit, from.logits, from.correction, choice, errors);
    let best: RidgeStep = { found: undefined, penalty: 0, share: 0 };
    const mean = weights.reduce((sum, weight) => sum + weight, 0) / weights.length;
    if (!(mean > 0)) return best;
    this.#ridge ??= new Ridge(this.#features(), this.#hasBias ? hidden + 1 : hidden);
    const solved = this.#ridge.solve(
      changes,
      weights.map((weight) => weight / mean),
      this.#penalties,
    );
    for (const [i, step] of solved.entries()) {
      const { weight, bias } = this.#split(step);
      const change = routerLogits(weight, bias, this.#sample.inputs, hidden);
      for (const share of shares) {
        const values: RouterValues = {
          ...from.values,
          weight: from.values.weight.map((value, at) => value + share * (weight[at] as number)),
          bias: from.values.bias?.map((value, slot) => value + share * (bias?.[slot] as number)),
        };
        const logits = from.logits.map((z, at) => z + share * (change[at] as number));
        const found = this.#sample.measureLogits(values, logits);
        if (best.found && best.found.errors.heldOut <= found.errors.heldOut) continue;
        best = { found, penalty: this.#penalties[i] as number, share };
      }
    }
    this.#penalties = [best.penalty];
    return best;
  }

  /** Inputs of the fit part, and a 1 for the bias. */
  #features(): Float64Array {
    const { fit, hidden, inputs } = this.#sample;
    const size = this.#hasBias ? hidden + 1 : hidden;
    const out = new Float64Array(fit.length * size);
    fit.forEach((token, row) => {
      out.set(inputs.subarray(token * hidden, (token + 1) * hidden), row * size);
      if (this.#hasBias) out[row * size + hidden] = 1;
    });
    return out;
  }

  /** Rows and biases of one matrix [slots, hidden + 1]. */
  #split(step: Float64Array): { weight: Float64Array; bias: Float64Array | undefined } {
    if (!this.#hasBias) return { weight: step, bias: undefined };
    const { hidden, block } = this.#sample;
    const weight = new Float64Array(block.slots * hidden);
    const bias = new Float64Array(block.slots);
    for (let slot = 0; slot < block.slots; slot++) {
      const from = slot * (hidden + 1);
      weight.set(step.subarray(from, from + hidden), slot * hidden);
      bias[slot] = step[from + hidden] as number;
    }
    return { weight, bias };
  }
}
