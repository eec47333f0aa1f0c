import { type ActivationKind, activationCode, isGated } from "./activation-code.js";
import { formatKey, loadCode, matrixBindings, type WeightFormat } from "./gpu-matrix.js";
import { type KernelSource, reads, writes } from "./kernel.js";
import { loadXCode, type MatmulParam, matmulParams } from "./matmul-code.js";
import { range } from "./range.js";

export interface RowsOptions {
  readonly format: WeightFormat;
  readonly bias: boolean;
  readonly activation: ActivationKind;
  /** Rows of x that one reading of the weights serves; 1 where they are gathered. */
  readonly rows: 1 | 2 | 4 | 8;
  /** Whether every row is a choice with an expert of its own. */
  readonly gathered: boolean;
  readonly scaled: boolean;
  readonly vectors: boolean;
  /** Threads that share the columns of one output. */
  readonly lanes: 8 | 32;
}

export const rowsKey = (o: RowsOptions) =>
  `rows ${formatKey(o.format)} ${o.activation} ${o.rows} ${o.lanes} ${[o.bias, o.gathered, o.scaled, o.vectors].map(Number).join("")}`;

const threads = 128;

/** Threads that share the columns of one output: no more than have work. */
export const lanesFor = (columns: number): 8 | 32 => (columns >= 256 ? 32 : 8);

/** Outputs of one workgroup. */
export const rowsOutputs = (columns: number) => threads / lanesFor(columns);

/**
 * y = activation(x Wᵀ + bias) * factor for few rows of x, as decoding has them: weights are read once, 8 columns per thread
 * and neighbouring threads side by side, and the sums of an output are added in workgroup memory.
 *
 * For gated activations, rows of W are those of up and gate in turn.
 *
 * Bindings: x, W, bias, slots, places (and gate weights) where rows are gathered, y.
 */
export function rowsSource(options: RowsOptions): KernelSource<MatmulParam> {
  const { format, bias, activation, rows, gathered, scaled, vectors, lanes } = options;
  const names = isGated(activation) ? ["up", "gate"] : ["up"];
  const add = (which: number) =>
    bias
      ? ` + bias[${gathered ? "p.column + weight_row" : `${names.length}u * p.column + weight_row`} + ${which}u]`
      : "";
  const sums = names.flatMap((name) => range(rows).map((r) => ({ name, r })));
  const at = (i: number) => `${i * threads}u + t`;
  const code = `
var<workgroup> sums: array<f32, ${threads * sums.length}>;
${loadCode("w", format, "((p.k + 7u) / 8u * 8u)")}
${activationCode(activation)}
${loadXCode(vectors)}
@compute @workgroup_size(${threads})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) t: u32) {
  let lane = t % ${lanes}u;
  let n = group.x * ${threads / lanes}u + t / ${lanes}u;
${
  gathered
    ? `  let choice = group.y;
  let slot = slots[choice];
  if (slot < 0) { return; }
  let expert = places[u32(slot)];
  if (expert < p.first || expert >= p.first + p.count) { return; }
  let base = (expert - p.first) * p.n * ${names.length}u;
  let first_row = choice;`
    : `  let base = 0u;
  let first_row = group.y * ${rows}u;`
}
  let weight_row = base + ${names.length}u * min(n, p.n - 1u);
${sums.map(({ name, r }) => `  var ${name}_${r} = 0.0;`).join("\n")}
  for (var k8 = lane; k8 < (p.k + 7u) / 8u; k8 += ${lanes}u) {
${names.map((name, which) => `    let ${name}_w = w_load(weight_row + ${which}u, k8);`).join("\n")}
${range(rows)
  .map(
    (r) => `    let row_${r} = min(first_row + ${r}u, p.m - 1u) / p.divisor;
    let a_${r} = load_x(row_${r}, 2u * k8);
    let b_${r} = load_x(row_${r}, 2u * k8 + 1u);
${names.map((name) => `    ${name}_${r} += dot(a_${r}, ${name}_w[0]) + dot(b_${r}, ${name}_w[1]);`).join("\n")}`,
  )
  .join("\n")}
  }
${sums.map(({ name, r }, i) => `  sums[${at(i)}] = ${name}_${r};`).join("\n")}
  for (var step = ${lanes / 2}u; step > 0u; step /= 2u) {
    workgroupBarrier();
    if (lane < step) {
${sums.map((_, i) => `      sums[${at(i)}] += sums[${at(i)} + step];`).join("\n")}
    }
  }
  if (lane == 0u && n < p.n) {
${range(rows)
  .map((r) => {
    const scale = scaled ? " * gates[first_row]" : "";
    const up = `sums[${at(r)}]${scale}${add(0)}`;
    const gate = names.length > 1 ? `sums[${at(rows + r)}]${scale}${add(1)}` : "0.0";
    return `    if (first_row + ${r}u < p.m) { y[(first_row + ${r}u) * p.stride + ${gathered ? "" : "p.column + "}n] = activate(${gate}, ${up}) * p.factor; }`;
  })
  .join("\n")}
  }
}`;
  return {
    name: gathered ? "matmul-gathered" : "matmul-rows",
    params: matmulParams,
    bindings: [
      reads("x", vectors ? "array<vec4f>" : "array<f32>"),
      ...matrixBindings("w", format),
      ...(bias ? [reads("bias", "array<f32>")] : []),
      ...(gathered ? [reads("slots", "array<i32>"), reads("places", "array<u32>")] : []),
      ...(scaled ? [reads("gates", "array<f32>")] : []),
      writes("y", "array<f32>"),
    ],
    code,
  };
}
