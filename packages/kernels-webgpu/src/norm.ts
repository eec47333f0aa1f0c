import type { NormSpec } from "@coppice/core";
import type { Gpu } from "./gpu.js";
import type { GpuBuffer } from "./gpu-buffer.js";
import { type KernelSource, reads, writes } from "./kernel.js";
import { groupIndex, mainOf, reduceCode, spread } from "./spread.js";

export interface NormCall {
  readonly kind: NormSpec["kind"];
  readonly epsilon: number;
  /** [size] */
  readonly weight?: GpuBuffer | undefined;
  readonly bias?: GpuBuffer | undefined;
  readonly x: GpuBuffer;
  /** Absent: x is overwritten. */
  readonly y?: GpuBuffer | undefined;
  /** Values that are normalised together, and how many such rows there are. */
  readonly size: number;
  readonly rows: number;
  /** Values from one row of x to the next. @default size */
  readonly stride?: number;
}

type Param = "rows" | "size" | "stride" | "next" | "epsilon";
const threads = 64;

/** `NormSpec` over rows; each sum is one of partial sums of 64 threads, float32. */
export function norm(gpu: Gpu, call: NormCall): void {
  const { kind, epsilon, weight, bias, x, y, size, rows, stride = size } = call;
  const key = `norm ${kind} ${[weight, bias, y].map((one) => Number(one !== undefined)).join("")}`;
  const kernel = gpu.kernel(key, () =>
    normSource(kind, weight !== undefined, bias !== undefined, y === undefined),
  );
  const buffers = [...(y ? [x] : []), weight, bias, y ?? x].filter((one) => one !== undefined);
  const params = { rows, size, stride, next: y ? size : stride, epsilon };
  gpu.commands.dispatch(kernel, buffers, params, ...spread(rows));
}

function normSource(
  kind: NormSpec["kind"],
  weight: boolean,
  bias: boolean,
  inPlace: boolean,
): KernelSource<Param> {
  const x = inPlace ? "y" : "x";
  const value = `${weight ? "value * weight[i]" : "value"}${bias ? " + bias[i]" : ""}`;
  return {
    name: "norm",
    params: { rows: "u32", size: "u32", stride: "u32", next: "u32", epsilon: "f32" },
    bindings: [
      ...(inPlace ? [] : [reads("x", "array<f32>")]),
      ...(weight ? [reads("weight", "array<f32>")] : []),
      ...(bias ? [reads("bias", "array<f32>")] : []),
      writes("y", "array<f32>"),
    ],
    code: `
${reduceCode("add_all", "sum", threads)}
${mainOf(threads)} {
  let row = ${groupIndex};
  if (row >= p.rows) { return; }
  let source = row * p.stride;
  let out = row * p.next;
  var mean = 0.0;
${
  kind === "layer"
    ? `  var sum = 0.0;
  for (var i = t; i < p.size; i += ${threads}u) { sum += ${x}[source + i]; }
  mean = add_all(t, sum) / f32(p.size);`
    : ""
}
  var squares = 0.0;
  for (var i = t; i < p.size; i += ${threads}u) {
    let off = ${x}[source + i] - mean;
    squares += off * off;
  }
  let factor = 1.0 / sqrt(add_all(t, squares) / f32(p.size) + p.epsilon);
  for (var i = t; i < p.size; i += ${threads}u) {
    let value = (${x}[source + i] - mean) * factor;
    y[out + i] = ${value};
  }
}`,
  };
}
