import { CoppiceError, elementCount, type TensorRef } from "@coppice/core";

/**
 * Codes and scales of one expert as the matrix that they make. The sizes of the blocks follow from the shapes, unless
 * several blocks lie in both directions: then they are `block`.
 * @param codes [R, C] in F8, or U8 pairs of FP4 values in blocks of 32 (MXFP4) with R first
 * @throws COPPICE_FORMAT_SHAPE when the scales do not fit the codes
 */
export function quantizedMatrix(
  codes: TensorRef,
  scales: TensorRef,
  block: readonly [rows: number, columns: number] | undefined,
): TensorRef {
  const isFloat4 = codes.dtype === "U8";
  const [rows = 1] = codes.shape;
  const columns = (elementCount(codes.shape) * (isFloat4 ? 2 : 1)) / rows;
  const count = elementCount(scales.shape);
  const [down, across] =
    count === 1
      ? [1, 1]
      : scales.shape.length > 1
        ? [scales.shape[0] as number, count / (scales.shape[0] as number)]
        : count === rows
          ? [rows, 1]
          : [1, count];
  const sizes = isFloat4
    ? [1, 32]
    : [
        down === 1 ? rows : down === rows ? 1 : (block?.[0] ?? 0),
        across === 1 ? columns : across === columns ? 1 : (block?.[1] ?? 0),
      ];
  const [high, wide] = sizes as [number, number];
  if (Math.ceil(rows / high) !== down || Math.ceil(columns / wide) !== across) {
    throw new CoppiceError(
      "COPPICE_FORMAT_SHAPE",
      `${scales.name} has [${scales.shape.join(", ")}] scales, which do not fit ${codes.name} with ` +
        `[${rows}, ${columns}] values in blocks of ${high} x ${wide}`,
      { details: { codes: codes.name, scales: scales.name } },
    );
  }
  return {
    ...codes,
    shape: [rows, columns],
    scales: {
      format: isFloat4 ? "mxfp4" : "scaled",
      stored: [rows, columns],
      rows: high,
      columns: wide,
      scales,
    },
  };
}
