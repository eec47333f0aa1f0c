import { routerLogits } from "@coppice/core";
import type { Fitted, SplitSample } from "./fit-state.js";
import { Ridge } from "./ridge.js";
import type { RouterValues } from "./router-values.js";
import { tokenTargets } from "./token-targets.js";

/** Descending. The first changes the rows by a few percent, the last fits all that a thousand tokens show. */
const penalties = [100, 10, 1, 0.1, 0.01, 0.001] as const;

export interface RidgeStep {
  readonly found: Fitted;
  /** λ of `Ridge`. */
  readonly penalty: number;
}

/** Ridge fits of the change of rows, and of biases where there are any, to the change of logits that tokens ask for. */
export class RidgeFit {
  readonly #sample: SplitSample;
  readonly #hasBias: boolean;
  #ridge: Ridge | undefined;

  constructor(sample: SplitSample) {
    this.#sample = sample;
    this.#hasBias = sample.block.router.bias !== undefined;
  }

  /**
   * The fit with the largest penalty of those that take nearly as much off the held-out error as the best one.
   * @param caution share of the best one's gain that may be given up
   * @returns undefined when no token asks for a change, or none takes anything off
   */
  fit(from: Fitted, caution: number): RidgeStep | undefined {
    const { block, fit, hidden, inputs } = this.#sample;
    const errors = block.errors(block.route(from.logits, from.correction));
    const choice = block.choose(from.logits, from.correction);
    const { changes, weights } = tokenTargets(block, fit, from.logits, from.correction, choice, errors);
    const mean = weights.reduce((sum, weight) => sum + weight, 0) / weights.length;
    if (!(mean > 0)) return undefined;
    this.#ridge ??= new Ridge(this.#features(), this.#hasBias ? hidden + 1 : hidden);
    const solved = this.#ridge.solve(
      changes,
      weights.map((weight) => weight / mean),
      penalties,
    );
    const steps = solved.map((step, i): RidgeStep => {
      const { weight, bias } = this.#split(step);
      const values: RouterValues = {
        ...from.values,
        weight: from.values.weight.map((value, at) => value + (weight[at] as number)),
        bias: from.values.bias?.map((value, slot) => value + (bias?.[slot] as number)),
      };
      const change = routerLogits(weight, bias, inputs, hidden);
      const logits = from.logits.map((z, at) => z + (change[at] as number));
      return { found: this.#sample.measureLogits(values, logits), penalty: penalties[i] as number };
    });
    const gain = ({ found }: RidgeStep) => from.errors.heldOut - found.errors.heldOut;
    const most = Math.max(...steps.map(gain));
    return most > 0 ? steps.find((step) => gain(step) >= (1 - caution) * most) : undefined;
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
