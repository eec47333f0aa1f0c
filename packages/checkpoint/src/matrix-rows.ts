import { dtypeBytes, type TensorRef } from "@coppice/core";

/**
 * Rows `first` to `first + count - 1` of a stored matrix [R, C] as a tensor of their own bytes and scales; undefined
 * when they share a block of scales with other rows.
 */
export function matrixRows(matrix: TensorRef, first: number, count: number): TensorRef | undefined {
  const [R, C] = matrix.shape as [number, number];
  const bytes = (matrix.end - matrix.begin) / R;
  const begin = matrix.begin + first * bytes;
  const rows = { ...matrix, shape: [count, C], begin, end: begin + count * bytes };
  const { scales } = matrix;
  if (!scales) return rows;
  if (first % scales.rows !== 0 || (count % scales.rows !== 0 && first + count !== R)) return undefined;
  const across = Math.ceil(C / scales.columns);
  const down = Math.ceil(count / scales.rows);
  const scaleBytes = across * dtypeBytes[scales.scales.dtype];
  const scaleBegin = scales.scales.begin + (first / scales.rows) * scaleBytes;
  return {
    ...rows,
    scales: {
      ...scales,
      stored: [count, C],
      scales: {
        ...scales.scales,
        shape: [down, across],
        begin: scaleBegin,
        end: scaleBegin + down * scaleBytes,
      },
    },
  };
}
