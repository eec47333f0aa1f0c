import { type ActivationKind, activationCode, isGated } from "./activation-code.js";
import { formatKey, loadCode, matrixBindings, type WeightFormat } from "./gpu-matrix.js";
import { type KernelSource, reads, writes } from "./kernel.js";
import { loadXCode, type MatmulParam, matmulParams } from "./matmul-code.js";
import { range } from "./range.js";

/** A small one fills more multiprocessors, a large one reads less. */
export type Tile = 16 | 64 | 128;

export interface TiledOptions {
  readonly format: WeightFormat;
  readonly bias: boolean;
  readonly activation: ActivationKind;
  /** Whether rows are sorted by expert (`sortChoices`) and every tile has an expert of its own. */
  readonly grouped: boolean;
  /** Whether the inputs of a choice are multiplied by its gate weight. */
  readonly scaled: boolean;
  /** Whether the columns of x are a multiple of 4, so that it is read in vectors. */
  readonly vectors: boolean;
  /** Whether the tiles in workgroup memory are f16; sums are f32 all the same. */
  readonly half: boolean;
  /** Rows and columns of y per workgroup of 256 threads. */
  readonly tile: Tile;
}

/** Columns of y of one workgroup. */
export const tileColumns = (tile: Tile, gated: boolean) => (gated && tile > 16 ? tile / 2 : tile);

export const tiledKey = (o: TiledOptions) =>
  `tiled ${formatKey(o.format)} ${o.activation} ${[o.bias, o.grouped, o.scaled, o.vectors, o.half].map(Number).join("")} ${o.tile}`;

/**
 * y = activation(x Wᵀ + bias) * factor, x [m, k] and W [n, k] of one part, tile by tile: both tiles lie in workgroup memory by
 * vectors of 4 columns, and each thread sums a square of outputs in registers. For gated activations, rows of W are those of up
 * and gate in turn, and half as many columns per tile of y keep the registers equal.
 *
 * Bindings: x, W, bias, sorted choices, tiles and gate weights where it has any, y. The bias is that of the part where rows are
 * grouped, else that of all columns of y.
 */
export function tiledSource(options: TiledOptions): KernelSource<MatmulParam> {
  const { format, bias, activation, grouped, scaled, vectors, half, tile } = options;
  const gated = isGated(activation);
  const names = gated ? ["up", "gate"] : ["up"];
  // 16 by 16 threads; 16 KiB of workgroup memory are what every device has.
  const per = tile / 16;
  const tileN = tileColumns(tile, gated);
  const perN = tileN / 16;
  const depth = { 16: 8, 64: 4, 128: 2 }[tile];
  const vector = half ? "vec4h" : "vec4f";
  const squares = names.flatMap((name) =>
    range(per).flatMap((i) => range(perN).map((j) => ({ name, i, j, sum: `${name}_${i}_${j}` }))),
  );
  const weightLoads = names.map(
    (
      name,
      which,
    ) => `    let ${name}_w = w_load(select(0u, base + ${names.length}u * (n0 + row) + ${which}u, inside), k0 / 2u + pair);
    ${name}_tile[2u * pair * ${tileN}u + row] = select(${vector}(0.0), ${vector}(${name}_w[0]), inside);
    ${name}_tile[(2u * pair + 1u) * ${tileN}u + row] = select(${vector}(0.0), ${vector}(${name}_w[1]), inside);`,
  );
  const code = `
const TILE = ${tile}u;
const TILE_N = ${tileN}u;
const DEPTH = ${depth}u;
var<workgroup> x_tile: array<${vector}, ${tile * depth}>;
${names.map((name) => `var<workgroup> ${name}_tile: array<${vector}, ${tileN * depth}>;`).join("\n")}
var<workgroup> x_row: array<u32, ${tile}>;
${loadCode("w", format, "((p.k + 7u) / 8u * 8u)")}
${activationCode(activation)}
${loadXCode(vectors)}
@compute @workgroup_size(16, 16)
fn main(
  @builtin(workgroup_id) group: vec3u,
  @builtin(local_invocation_id) thread: vec3u,
  @builtin(local_invocation_index) t: u32,
) {
${
  grouped
    ? `  if (group.y >= tiles[0].x) { return; }
  let place = tiles[group.y + 1u];
  if (place.x < p.first || place.x >= p.first + p.count) { return; }
  let start = place.y;
  let rows = place.z;
  let base = (place.x - p.first) * p.n * ${names.length}u;`
    : `  let start = group.y * TILE;
  let rows = min(TILE, p.m - start);
  let base = 0u;`
}
  let n0 = group.x * TILE_N;
  if (t < rows) { x_row[t] = ${grouped ? "sorted[start + t]" : "start + t"}; }
  workgroupBarrier();
${squares.map(({ sum }) => `  var ${sum} = 0.0;`).join("\n")}
  let steps = (p.k + 3u) / 4u;
  for (var k0 = 0u; k0 < steps; k0 += DEPTH) {
    for (var i = t; i < TILE * DEPTH; i += 256u) {
      let row = i / DEPTH;
      let k4 = i % DEPTH;
      var v = vec4f(0.0);
      if (row < rows) {
        v = load_x(x_row[row] / p.divisor, k0 + k4)${scaled ? " * gates[x_row[row]]" : ""};
      }
      x_tile[k4 * TILE + row] = ${vector}(v);
    }
    for (var i = t; i < TILE_N * DEPTH / 2u; i += 256u) {
      let row = i / (DEPTH / 2u);
      let pair = i % (DEPTH / 2u);
      let inside = n0 + row < p.n && k0 + 2u * pair < steps;
${weightLoads.join("\n")}
    }
    workgroupBarrier();
    for (var k4 = 0u; k4 < DEPTH; k4++) {
${range(per)
  .map((i) => `      let a_${i} = vec4f(x_tile[k4 * TILE + thread.y + ${16 * i}u]);`)
  .join("\n")}
${names
  .flatMap((name) =>
    range(perN).flatMap((j) => [
      `      let ${name}_b${j} = vec4f(${name}_tile[k4 * TILE_N + thread.x + ${16 * j}u]);`,
      ...range(per).map((i) => {
        const sum = `${name}_${i}_${j}`;
        const b = `${name}_b${j}`;
        return `      ${sum} = a_${i}.w * ${b}.w + (a_${i}.z * ${b}.z + (a_${i}.y * ${b}.y + (a_${i}.x * ${b}.x + ${sum})));`;
      }),
    ]),
  )
  .join("\n")}
    }
    workgroupBarrier();
  }
${range(per)
  .map(
    (i) => `  if (thread.y + ${16 * i}u < rows) {
    let row = x_row[thread.y + ${16 * i}u];
${range(perN)
  .map((j) => {
    const at = `n0 + thread.x + ${16 * j}u`;
    const add = (which: number) =>
      bias
        ? ` + bias[${grouped ? "p.column + base" : `${names.length}u * p.column`} + ${names.length}u * (${at}) + ${which}u]`
        : "";
    const gate = gated ? `gate_${i}_${j}${add(1)}` : "0.0";
    return `    if (${at} < p.n) { y[row * p.stride + ${grouped ? "" : "p.column + "}${at}] = activate(${gate}, up_${i}_${j}${add(0)}) * p.factor; }`;
  })
  .join("\n")}
  }`,
  )
  .join("\n")}
}`;
  return {
    name: grouped ? "matmul-grouped" : "matmul-tiled",
    ...(half && { enable: ["f16"] }),
    params: matmulParams,
    bindings: [
      reads("x", vectors ? "array<vec4f>" : "array<f32>"),
      ...matrixBindings("w", format),
      ...(bias ? [reads("bias", "array<f32>")] : []),
      ...(grouped ? [reads("sorted", "array<u32>"), reads("tiles", "array<vec4u>")] : []),
      ...(scaled ? [reads("gates", "array<f32>")] : []),
      writes("y", "array<f32>"),
    ],
    code,
  };
}
