import { type ActivationKind, activationCode, isGated } from "./activation-code.js";
import { formatKey, loadCode, matrixBindings, type WeightFormat } from "./gpu-matrix.js";
import { type KernelSource, reads, writes } from "./kernel.js";
import { loadXCode, type MatmulParam, matmulParams } from "./matmul-code.js";
import { range } from "./range.js";

export interface SerialOptions {
  readonly format: WeightFormat;
  readonly bias: boolean;
  readonly activation: ActivationKind;
  /** What a workgroup multiplies: rows of x by one matrix, a tile of `sortChoices` by its expert, or one choice by its own. */
  readonly of: "matrix" | "tile" | "choice";
  /** Rows of x that one reading of the weights serves. */
  readonly rows: 1 | 4;
  /** Whether the sums of a choice are multiplied by its gate weight. */
  readonly scaled: boolean;
  /** Columns of x that are read at once: what their number is a multiple of. */
  readonly width: 1 | 4 | 8;
}

export const serialKey = (o: SerialOptions) =>
  `serial ${formatKey(o.format)} ${o.activation} ${o.of} ${o.rows} ${o.width} ${[o.bias, o.scaled].map(Number).join("")}`;

const threads = 16;
/** Rows of W that a thread multiplies side by side, so that it reads x once for all of them. */
const rowsOfW = 4;

/** Columns of y of one workgroup. */
export const serialColumns = (activation: ActivationKind) =>
  (threads * rowsOfW) / (isGated(activation) ? 2 : 1);

/**
 * y = activation(x Wᵀ + bias) * factor on a device that runs threads one after another, as a processor does: no memory of
 * workgroups and no barriers, for which such a device stops and resumes every thread; few threads that sum several outputs each.
 *
 * Every output is the sum of its products in the order of the columns, however many rows there are, so that it has the same bits in
 * any company. For gated activations, rows of W are those of up and gate in turn.
 *
 * Bindings: x, W, bias, then order and tiles (`tile`) or slots and places (`choice`), gate weights, y.
 */
export function serialSource(options: SerialOptions): KernelSource<MatmulParam> {
  const { format, bias, activation, of, rows, scaled, width } = options;
  const turns = isGated(activation) ? 2 : 1;
  const outputs = range(rowsOfW / turns);
  const inRows = range(rows);
  const sums = outputs.flatMap((o) => range(turns).map((turn) => ({ o, turn })));
  const sum = (r: number, o: number, turn: number) => `sum_${r}_${o}_${turn}`;
  const finished = (r: number, o: number, turn: number) =>
    `${sum(r, o, turn)}${scaled ? ` * gates[row_${r}]` : ""}${
      bias ? ` + bias[${of === "matrix" ? `${turns}u * p.column` : "p.column"} + weight_${o} + ${turn}u]` : ""
    }`;
  const place = {
    matrix: `  let start = group.y * ${rows}u;
  let rows = min(${rows}u, p.m - start);
  let base = 0u;`,
    tile: `  if (group.y >= tiles[0].x) { return; }
  let place = tiles[group.y + 1u];
  let start = place.y;
  let rows = place.z;
  let expert = place.x;`,
    choice: `  if (slots[group.y] < 0) { return; }
  let start = group.y;
  let rows = 1u;
  let expert = places[u32(slots[group.y])];`,
  }[of];
  const rowOf = (row: string) => (of === "tile" ? `order[start + ${row}]` : `(start + ${row})`);
  const xAt = (r: number, k4: string) =>
    width === 8 ? `x[x_${r} * (p.k / 4u) + ${k4}]` : `load_x(x_${r}, ${k4})`;
  const code = `
${loadCode("w", format, "((p.k + 7u) / 8u * 8u)")}
${activationCode(activation)}
${width === 8 ? "" : loadXCode(width === 4)}
@compute @workgroup_size(${threads})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) t: u32) {
${place}
${
  of === "matrix"
    ? ""
    : `  if (expert < p.first || expert >= p.first + p.count) { return; }
  let base = (expert - p.first) * p.n * ${turns}u;`
}
${outputs
  .map(
    (o) => `  let n_${o} = group.x * ${serialColumns(activation)}u + ${o * threads}u + t;
  let weight_${o} = base + ${turns}u * min(n_${o}, p.n - 1u);`,
  )
  .join("\n")}
  for (var first = 0u; first < rows; first += ${rows}u) {
${inRows
  .map(
    (r) => `    let row_${r} = ${rowOf(`min(first + ${r}u, rows - 1u)`)};
    let x_${r} = row_${r} / p.divisor;
${sums.map(({ o, turn }) => `    var ${sum(r, o, turn)} = 0.0;`).join("\n")}`,
  )
  .join("\n")}
    for (var k8 = 0u; k8 < (p.k + 7u) / 8u; k8++) {
${inRows.map((r) => `      let a_${r} = ${xAt(r, "2u * k8")};\n      let b_${r} = ${xAt(r, "2u * k8 + 1u")};`).join("\n")}
${sums
  .map(
    ({ o, turn }) => `      {
        let w = w_load(weight_${o} + ${turn}u, k8);
${inRows.map((r) => `        ${sum(r, o, turn)} += dot(a_${r}, w[0]) + dot(b_${r}, w[1]);`).join("\n")}
      }`,
  )
  .join("\n")}
    }
${inRows
  .flatMap((r) =>
    outputs.map(
      (o) => `    if (first + ${r}u < rows && n_${o} < p.n) {
      y[row_${r} * p.stride + ${of === "matrix" ? "p.column + " : ""}n_${o}] = activate(${turns === 2 ? finished(r, o, 1) : "0.0"}, ${finished(r, o, 0)}) * p.factor;
    }`,
    ),
  )
  .join("\n")}
  }
}`;
  return {
    name: { matrix: "matmul-serial", tile: "matmul-grouped", choice: "matmul-gathered" }[of],
    params: matmulParams,
    bindings: [
      reads("x", width === 1 ? "array<f32>" : "array<vec4f>"),
      ...matrixBindings("w", format),
      ...(bias ? [reads("bias", "array<f32>")] : []),
      ...(of === "tile" ? [reads("order", "array<u32>"), reads("tiles", "array<vec4u>")] : []),
      ...(of === "choice" ? [reads("slots", "array<i32>"), reads("places", "array<u32>")] : []),
      ...(scaled ? [reads("gates", "array<f32>")] : []),
      writes("y", "array<f32>"),
    ],
    code,
  };
}
