import type { Gpu } from "./gpu.js";
import type { GpuBuffer } from "./gpu-buffer.js";
import {
  formatKey,
  type GpuMatrix,
  loadCode,
  matrixBindings,
  partBuffers,
  type WeightFormat,
} from "./gpu-matrix.js";
import { type KernelSource, reads, writes } from "./kernel.js";
import { groupIndex, mainOf, spread } from "./spread.js";

const threads = 64;
type Param = "tokens" | "columns" | "first" | "count" | "factor";

/**
 * Rows of a matrix as float32: y[t] = weight[ids[t]] * factor. Ids beyond the matrix give nothing.
 * @param ids [tokens] u32, rows counted through all blocks
 * @param y [tokens, columns]
 */
export function embed(
  gpu: Gpu,
  weight: GpuMatrix,
  ids: GpuBuffer,
  tokens: number,
  y: GpuBuffer,
  factor = 1,
): void {
  const { format, rows, columns, parts } = weight;
  const kernel = gpu.kernel(`embed ${formatKey(format)}`, () => embedSource(format));
  for (const part of parts) {
    const params = { tokens, columns, first: part.first * rows, count: part.count * rows, factor };
    gpu.commands.dispatch(kernel, [...partBuffers(part), ids, y], params, ...spread(tokens));
  }
}

function embedSource(format: WeightFormat): KernelSource<Param> {
  return {
    name: "embed",
    params: { tokens: "u32", columns: "u32", first: "u32", count: "u32", factor: "f32" },
    bindings: [...matrixBindings("w", format), reads("ids", "array<u32>"), writes("y", "array<f32>")],
    code: `
${loadCode("w", format, "((p.columns + 7u) / 8u * 8u)")}
${mainOf(threads)} {
  let token = ${groupIndex};
  if (token >= p.tokens) { return; }
  let id = ids[token];
  if (id < p.first || id >= p.first + p.count) { return; }
  for (var k8 = t; k8 < (p.columns + 7u) / 8u; k8 += ${threads}u) {
    let w = w_load(id - p.first, k8);
    for (var i = 0u; i < 8u; i++) {
      let column = 8u * k8 + i;
      if (column < p.columns) { y[token * p.columns + column] = w[i / 4u][i % 4u] * p.factor; }
    }
  }
}`,
  };
}
