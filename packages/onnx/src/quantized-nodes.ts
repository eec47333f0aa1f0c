import type { QuantizedMatrix } from "@coppice/core";
import type { GraphBuilder, Value } from "./graph-builder.js";
import { dataTypes } from "./model-file.js";
import type { LinearOptions } from "./part-weights.js";

/** The parts of a quantized matrix as values of a graph. */
export interface QuantizedValues {
  /** uint8 */
  readonly codes: Value;
  /** float32 [N, K / g] */
  readonly scales: Value;
  /** uint8; absent: all are 2^(bits - 1). */
  readonly zeroPoints?: Value;
}

export type QuantizedShape = Pick<QuantizedMatrix, "rows" | "columns" | "bits" | "groupSize">;

/**
 * What MatMulNBits does with the rows: multiplies them as they are, or quantizes them to int8 block by block, which
 * integer instructions multiply; the error is some 0.3 % of the largest result.
 */
export type RowPrecision = "float32" | "int8";

/** Values of `accuracy_level`. */
const accuracyLevels: Readonly<Record<RowPrecision, number>> = { float32: 0, int8: 4 };

/** `x Wᵀ + bias` for a quantized W [N, K], codes [N, K / g, g bits / 8] as they are. @param bias [N] */
export function quantizedLinear(
  graph: GraphBuilder,
  x: Value,
  { codes, scales, zeroPoints = "" }: QuantizedValues,
  { rows, columns, bits, groupSize }: QuantizedShape,
  precision: RowPrecision,
  bias: Value | undefined,
  { output, scale }: LinearOptions = {},
): Value {
  const inputs = [x, codes, scales, zeroPoints, "", bias ?? ""];
  const product = graph.node(
    "MatMulNBits",
    inputs.slice(0, inputs.findLastIndex((name) => name !== "") + 1),
    {
      domain: "com.microsoft",
      attributes: {
        K: columns,
        N: rows,
        bits,
        block_size: groupSize,
        accuracy_level: accuracyLevels[precision],
      },
    },
    scale === undefined ? output : undefined,
  );
  return scale === undefined ? product : graph.node("Mul", [product, graph.float32(scale)], {}, output);
}

/** Rows of a quantized matrix [V, K], float32; codes [V, K bits / 8]. @param ids int64 */
export function quantizedRows(
  graph: GraphBuilder,
  ids: Value,
  { codes, scales, zeroPoints }: QuantizedValues,
  { bits, groupSize }: QuantizedShape,
): Value {
  return graph.node("GatherBlockQuantized", [codes, ids, scales, ...(zeroPoints ? [zeroPoints] : [])], {
    domain: "com.microsoft",
    attributes: { bits, block_size: groupSize, gather_axis: 0, quantize_axis: 1 },
  });
}

/** A value as float32. */
export function asFloat32(graph: GraphBuilder, value: Value): Value {
  return graph.node("Cast", [value], { attributes: { to: dataTypes.float32 } });
}
