// What the benches of decoding under attention plans compare, so that their tables have the same rows.
import { parseArgs } from "node:util";

/** The options of these benches. */
export function spanOptions() {
  const { values } = parseArgs({
    options: {
      tokens: { type: "string", default: "16384" },
      layers: { type: "string", default: "2" },
      steps: { type: "string", default: "31" },
      threads: { type: "string", default: "1" },
    },
  });
  const { tokens, layers, steps, threads } = values;
  return { tokens: Number(tokens), layers: Number(layers), steps: Number(steps), threads: Number(threads) };
}

/** Query heads of a layer, each with keys of its own. */
export const heads = 8;

/**
 * Attention plans by name; `dense` is none.
 * @param {unknown} model what `attentionPlanModel` of `@coppice/core` says
 * @param {number} layers
 */
export function spanPlans(model, layers) {
  /**
   * One rule for `few` heads, another for the rest; shares of the text.
   * @param {number} few
   * @param {number} wide
   * @param {number} narrow
   */
  const plan = (few, wide, narrow) => ({
    format: "coppice.attention",
    version: 1,
    model,
    blockSize: 64,
    sinks: 64,
    rules: [wide, narrow].map((beta) => ({ alpha: 0, beta })),
    layers: Array.from({ length: layers }, () =>
      Array.from({ length: heads }, (_, head) => (head < few ? 0 : 1)),
    ),
  });
  return {
    dense: undefined,
    "1/2 in every head": plan(heads, 0.5, 0.5),
    "7/8 in 4 heads, 1/8 in 4": plan(4, 0.875, 0.125),
    "1/4 in every head": plan(heads, 0.25, 0.25),
    "5/8 in 2 heads, 1/8 in 6": plan(2, 0.625, 0.125),
  };
}

/** @param {readonly number[]} values */
export function median(values) {
  return values.toSorted((a, b) => a - b)[values.length >> 1];
}
