import type { Gpu } from "./gpu.js";
import type { GpuBuffer } from "./gpu-buffer.js";
import { type KernelSource, reads, writes } from "./kernel.js";
import { groupIndex, mainOf, spread, spreadThreads } from "./spread.js";

const threads = 64;

/** Values are read in vectors where whole rows are whole vectors. */
const vectorOf = (size: number): { readonly width: 1 | 4; readonly type: "f32" | "vec4f" } =>
  size % 4 === 0 ? { width: 4, type: "vec4f" } : { width: 1, type: "f32" };

/** y += factor * x, `count` values. */
export function addScaled(gpu: Gpu, x: GpuBuffer, y: GpuBuffer, count: number, factor: number): void {
  const { width, type } = vectorOf(count);
  const kernel = gpu.kernel(`add-scaled ${type}`, () => ({
    name: "add-scaled",
    params: { count: "u32", factor: "f32" },
    bindings: [reads("x", `array<${type}>`), writes("y", `array<${type}>`)],
    code: `${mainOf(threads)} {
  let i = ${groupIndex} * ${threads}u + t;
  if (i < p.count) { y[i] += p.factor * x[i]; }
}`,
  }));
  const vectors = count / width;
  gpu.commands.dispatch(kernel, [x, y], { count: vectors, factor }, ...spreadThreads(vectors, threads));
}

/** Limits values to ±limit. */
export function clip(gpu: Gpu, y: GpuBuffer, count: number, limit: number): void {
  const kernel = gpu.kernel("clip", () => ({
    name: "clip",
    params: { count: "u32", limit: "f32" },
    bindings: [writes("y", "array<f32>")],
    code: `${mainOf(threads)} {
  let i = ${groupIndex} * ${threads}u + t;
  if (i < p.count) { y[i] = clamp(y[i], -p.limit, p.limit); }
}`,
  }));
  gpu.commands.dispatch(kernel, [y], { count, limit }, ...spreadThreads(count, threads));
}

/** Multiplies every row of y [rows, size] by its factor. @param factors [rows] */
export function scaleRows(gpu: Gpu, y: GpuBuffer, rows: number, size: number, factors: GpuBuffer): void {
  const kernel = gpu.kernel("scale-rows", () => ({
    name: "scale-rows",
    params: { count: "u32", size: "u32" },
    bindings: [reads("factors", "array<f32>"), writes("y", "array<f32>")],
    code: `${mainOf(threads)} {
  let i = ${groupIndex} * ${threads}u + t;
  if (i < p.count) { y[i] *= factors[i / p.size]; }
}`,
  }));
  const count = rows * size;
  gpu.commands.dispatch(kernel, [factors, y], { count, size }, ...spreadThreads(count, threads));
}

export interface CopyRowsCall {
  readonly x: GpuBuffer;
  readonly y: GpuBuffer;
  readonly rows: number;
  readonly size: number;
  /** [rows] u32: row of x that row i comes from (`gather`), or row of y that it goes to (`scatter`). */
  readonly index: GpuBuffer;
  readonly kind: "gather" | "scatter";
}

/** y[i] = x[index[i]], or y[index[i]] = x[i], rows of `size` values. */
export function copyRows(gpu: Gpu, { x, y, rows, size, index, kind }: CopyRowsCall): void {
  const [from, to] = kind === "gather" ? ["index[row]", "row"] : ["row", "index[row]"];
  const source: KernelSource<"count" | "size"> = {
    name: `${kind}-rows`,
    params: { count: "u32", size: "u32" },
    bindings: [reads("x", "array<f32>"), reads("index", "array<u32>"), writes("y", "array<f32>")],
    code: `${mainOf(threads)} {
  let i = ${groupIndex} * ${threads}u + t;
  if (i >= p.count) { return; }
  let row = i / p.size;
  y[${to} * p.size + i % p.size] = x[${from} * p.size + i % p.size];
}`,
  };
  const kernel = gpu.kernel(source.name, () => source);
  const count = rows * size;
  gpu.commands.dispatch(kernel, [x, index, y], { count, size }, ...spreadThreads(count, threads));
}

/**
 * What the chosen experts of a token add together: y[t] = Σ gate * x[choice], in the order of the choices, without those that
 * do not run.
 * @param x [tokens * topK, size]
 * @param weighted false where gate weights scaled the inputs already
 */
export function combineChoices(
  gpu: Gpu,
  { slots, gates, tokens, topK }: { slots: GpuBuffer; gates: GpuBuffer; tokens: number; topK: number },
  x: GpuBuffer,
  y: GpuBuffer,
  size: number,
  weighted: boolean,
): void {
  const { width, type } = vectorOf(size);
  const kernel = gpu.kernel(`combine-choices ${type}`, () => ({
    name: "combine-choices",
    params: { count: "u32", size: "u32", topK: "u32", weighted: "u32" },
    bindings: [
      reads("x", `array<${type}>`),
      reads("slots", "array<i32>"),
      reads("gates", "array<f32>"),
      writes("y", `array<${type}>`),
    ],
    code: `${mainOf(threads)} {
  let i = ${groupIndex} * ${threads}u + t;
  if (i >= p.count) { return; }
  let token = i / p.size;
  var sum = ${type}();
  for (var choice = token * p.topK; choice < (token + 1u) * p.topK; choice++) {
    if (slots[choice] < 0) { continue; }
    sum += select(1.0, gates[choice], p.weighted == 1u) * x[choice * p.size + i % p.size];
  }
  y[i] = sum;
}`,
  }));
  const count = (tokens * size) / width;
  const params = { count, size: size / width, topK, weighted: Number(weighted) };
  gpu.commands.dispatch(kernel, [x, slots, gates, y], params, ...spreadThreads(count, threads));
}

/** y[t] += sigmoid(share[t]) * x[t], rows of `size` values; what a gated shared expert adds. @param shares [rows] */
export function addGated(
  gpu: Gpu,
  x: GpuBuffer,
  shares: GpuBuffer,
  y: GpuBuffer,
  rows: number,
  size: number,
): void {
  const kernel = gpu.kernel("add-gated", () => ({
    name: "add-gated",
    params: { count: "u32", size: "u32" },
    bindings: [reads("x", "array<f32>"), reads("shares", "array<f32>"), writes("y", "array<f32>")],
    code: `${mainOf(threads)} {
  let i = ${groupIndex} * ${threads}u + t;
  if (i < p.count) { y[i] += x[i] / (1.0 + exp(-shares[i / p.size])); }
}`,
  }));
  const count = rows * size;
  gpu.commands.dispatch(kernel, [x, shares, y], { count, size }, ...spreadThreads(count, threads));
}

/** A copy by a kernel, which reaches the memory's rate where the copy engine does not. `count` vectors of 4 values. */
export function copyVectors(gpu: Gpu, x: GpuBuffer, y: GpuBuffer, count: number): void {
  const kernel = gpu.kernel("copy-vectors", () => ({
    name: "copy-vectors",
    params: { count: "u32" },
    bindings: [reads("x", "array<vec4f>"), writes("y", "array<vec4f>")],
    code: `${mainOf(256)} {
  let i = ${groupIndex} * 256u + t;
  if (i < p.count) { y[i] = x[i]; }
}`,
  }));
  gpu.commands.dispatch(kernel, [x, y], { count }, ...spread(Math.ceil(count / 256)));
}
