import type { Dim, GraphBuilder, Value } from "./graph-builder.js";

/** Where a part of a graph takes its weights from, by the names that they have in that part. */
export interface PartWeights {
  /** A weight [size]. */
  vector(name: string, size: Dim): Value;
  /** `rows Wᵀ`, plus `<name>Bias` on request; rows [N, inputs], W [outputs, inputs]. */
  linear(
    rows: Value,
    name: string,
    shape: readonly [outputs: Dim, inputs: number],
    options?: LinearOptions,
  ): Value;
}

export interface LinearOptions {
  readonly bias?: boolean;
  /** Name of the result; absent: one is made up. */
  readonly output?: string;
  /** Factor on the result, bias included; absent: 1. */
  readonly scale?: number;
}

/** Weights that are inputs of the graph, each under its name with `suffix` behind it. */
export function inputWeights(graph: GraphBuilder, suffix = ""): PartWeights {
  const vector = (name: string, size: Dim) => graph.input(`${name}${suffix}`, [size]);
  return {
    vector,
    linear(rows, name, shape, { bias, output, scale } = {}) {
      const inputs = [rows, graph.input(`${name}${suffix}`, shape)];
      if (bias) inputs.push(vector(`${name}Bias`, shape[0]));
      return gemm(graph, inputs, scale, output);
    },
  };
}

/** `scale (rows Wᵀ + bias)` of the inputs [rows, W, bias]. */
export function gemm(
  graph: GraphBuilder,
  inputs: readonly Value[],
  scale: number | undefined,
  output: string | undefined,
): Value {
  const scaled = scale === undefined ? {} : { alpha: { float: scale }, beta: { float: scale } };
  return graph.node("Gemm", inputs, { attributes: { transB: 1, ...scaled } }, output);
}
