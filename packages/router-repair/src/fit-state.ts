import { type Routing, routerLogits } from "@coppice/core";
import type { BlockView } from "./block-view.js";
import type { RouterValues } from "./router-values.js";

/** Errors of a router on the two parts of the sample, as shares of the squared norm of what the block puts out. */
export interface PartErrors {
  /** Tokens that router values are fitted to. */
  readonly fit: number;
  /** Tokens that decide what is accepted. */
  readonly heldOut: number;
}

/** Router values and what comes of them. */
export interface Fitted {
  readonly values: RouterValues;
  /** [tokens, slots] */
  readonly logits: Float32Array;
  /** [slots] */
  readonly correction: Float32Array | undefined;
  readonly errors: PartErrors;
}

/** One layer's sample, split: every `every`-th token, the last of each such run, is held out. */
export class SplitSample {
  readonly block: BlockView;
  readonly inputs: Float32Array;
  readonly hidden: number;
  /** Indices of the tokens of each part, ascending. */
  readonly fit: readonly number[];
  readonly heldOut: readonly number[];

  /** @param inputs [tokens, hidden] */
  constructor(block: BlockView, inputs: Float32Array, hidden: number, every: number) {
    this.block = block;
    this.inputs = inputs;
    this.hidden = hidden;
    const tokens = Array.from({ length: block.tokens }, (_, token) => token);
    this.fit = tokens.filter((token) => token % every !== every - 1);
    this.heldOut = tokens.filter((token) => token % every === every - 1);
  }

  /** What router values do to the block. */
  measure(values: RouterValues): Fitted {
    return this.measureLogits(values, routerLogits(values.weight, values.bias, this.inputs, this.hidden));
  }

  /** As `measure`, with the logits that these values give. */
  measureLogits(values: RouterValues, logits: Float32Array): Fitted {
    const correction = values.correction && Float32Array.from(values.correction);
    const errors = this.shares(this.block.route(logits, correction));
    return { values, logits, correction, errors };
  }

  shares(routing: Routing): PartErrors {
    const errors = this.block.errors(routing);
    const share = (tokens: readonly number[]) => {
      const [error, norm] = [sumOf(errors, tokens), sumOf(this.block.norms, tokens)];
      return norm > 0 ? error / norm : 0;
    };
    return { fit: share(this.fit), heldOut: share(this.heldOut) };
  }
}

function sumOf(values: Float64Array, tokens: readonly number[]): number {
  return tokens.reduce((sum, token) => sum + (values[token] as number), 0);
}
