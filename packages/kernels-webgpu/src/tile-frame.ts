import { type ActivationKind, activationCode, isGated } from "./activation-code.js";
import { formatKey, loadCode, matrixBindings, type WeightFormat } from "./gpu-matrix.js";
import { type KernelSource, reads, writes } from "./kernel.js";
import { loadXCode, type MatmulParam, matmulParams } from "./matmul-code.js";

/** Rows of y per workgroup. A small tile fills more multiprocessors, a large one reads less. */
export type Tile = 16 | 64 | 128;

/** What both kernels that multiply tiles in workgroup memory do: `tiledSource` and `unitsSource`. */
export interface TileOptions {
  readonly format: WeightFormat;
  readonly bias: boolean;
  readonly activation: ActivationKind;
  /** Whether rows are sorted by expert (`sortChoices`) and every tile has an expert of its own. */
  readonly grouped: boolean;
  /** Whether the inputs of a choice are multiplied by its gate weight. */
  readonly scaled: boolean;
  /** Whether the columns of x are a multiple of 4, so that it is read in vectors. */
  readonly vectors: boolean;
  readonly tile: Tile;
}

/** Columns of y of one workgroup: half as many where each needs a row of up and one of gate. */
export const tileColumns = (tile: Tile, gated: boolean) => (gated && tile > 16 ? tile / 2 : tile);

/** A text that is equal for equal options. */
export const tileKey = (o: TileOptions) =>
  `${formatKey(o.format)} ${o.activation} ${[o.bias, o.grouped, o.scaled, o.vectors].map(Number).join("")} ${o.tile}`;

/**
 * WGSL around the products of a tile. Rows of W that a tile multiplies stand in turns: first those of all its columns of up, then
 * of gate.
 *
 * Bindings: x, W, bias, sorted choices, tiles and gate weights where it has any, y. The bias is that of the part where rows are
 * grouped, else that of all columns of y.
 */
export function tileFrame(options: TileOptions) {
  const { format, bias, activation, grouped, scaled, vectors, tile } = options;
  const turns = isGated(activation) ? 2 : 1;
  const columns = tileColumns(tile, turns === 2);
  const add = (at: string, turn: number) =>
    bias
      ? ` + bias[${grouped ? "p.column + base" : `${turns}u * p.column`} + ${turns}u * (${at}) + ${turn}u]`
      : "";
  return {
    turns,
    columns,
    bindings: [
      reads("x", vectors ? "array<vec4f>" : "array<f32>"),
      ...matrixBindings("w", format),
      ...(bias ? [reads("bias", "array<f32>")] : []),
      ...(grouped ? [reads("sorted", "array<u32>"), reads("tiles", "array<vec4u>")] : []),
      ...(scaled ? [reads("gates", "array<f32>")] : []),
      writes("y", "array<f32>"),
    ] satisfies KernelSource["bindings"],
    params: matmulParams satisfies KernelSource<MatmulParam>["params"],
    /** Functions: `w_load`, `load_x`, `activate`, and `x_columns(row, k8, inside)`, eight columns of a row of x. */
    functions: `${loadCode("w", format, "((p.k + 7u) / 8u * 8u)")}
${activationCode(activation)}
${loadXCode(vectors)}
fn x_columns(row: u32, k8: u32, inside: bool) -> array<vec4f, 2> {
  if (!inside) { return array<vec4f, 2>(vec4f(0.0), vec4f(0.0)); }
${
  scaled
    ? `  let gate = gates[row];
  return array<vec4f, 2>(load_x(row / p.divisor, 2u * k8) * gate, load_x(row / p.divisor, 2u * k8 + 1u) * gate);`
    : "  return array<vec4f, 2>(load_x(row / p.divisor, 2u * k8), load_x(row / p.divisor, 2u * k8 + 1u));"
}
}
fn w_columns(row: u32, k8: u32, inside: bool) -> array<vec4f, 2> {
  if (!inside) { return array<vec4f, 2>(vec4f(0.0), vec4f(0.0)); }
  return w_load(row, k8);
}`,
    /** `start`, `rows`, `base` (first row of W) and `n0` (first column) of the tile of this workgroup. */
    place: `${
      grouped
        ? `  if (group.y >= tiles[0].x) { return; }
  let place = tiles[group.y + 1u];
  if (place.x < p.first || place.x >= p.first + p.count) { return; }
  let start = place.y;
  let rows = place.z;
  let base = (place.x - p.first) * p.n * ${turns}u;`
        : `  let start = group.y * ${tile}u;
  let rows = min(${tile}u, p.m - start);
  let base = 0u;`
    }
  let n0 = group.x * ${columns}u;`,
    /** The row of x and y that is row `row` of the tile. */
    rowOf: (row: string) => (grouped ? `sorted[start + ${row}]` : `(start + ${row})`),
    /** The row of W of a column of the tile, which counts through the turns, and whether there is one. */
    weightRow: (column: string) =>
      turns === 2
        ? `base + 2u * (n0 + ${column} % ${columns}u) + ${column} / ${columns}u`
        : `base + n0 + ${column}`,
    weightInside: (column: string) =>
      turns === 2 ? `n0 + ${column} % ${columns}u < p.n` : `n0 + ${column} < p.n`,
    /** Writes column `at` of y, given the sums of its up and gate. */
    write: (row: string, at: string, up: string, gate: string) =>
      `y[${row} * p.stride + ${grouped ? "" : "p.column + "}${at}] = activate(${turns === 2 ? `${gate}${add(at, 1)}` : "0.0"}, ${up}${add(at, 0)}) * p.factor;`,
  };
}
