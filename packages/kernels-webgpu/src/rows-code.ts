import { type ActivationKind, activationCode, isGated } from "./activation-code.js";
import { dotCode, eightsRead } from "./dot-code.js";
import type { Gpu } from "./gpu.js";
import { formatKey, type GpuMatrix, matrixBindings, type WeightFormat } from "./gpu-matrix.js";
import { type KernelSource, reads, writes } from "./kernel.js";
import { loadXCode, type MatmulParam, matmulParams } from "./matmul-code.js";
import { canPack, packedDotCode } from "./packed-dot-code.js";
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
  /** Threads that share the columns of an output. */
  readonly lanes: 8 | 32 | 64;
  /** Outputs that a thread sums side by side, so that it reads x once for all of them. */
  readonly outputs: 1 | 4 | 8;
  /** Neighbouring eights of columns that a thread reads at once. */
  readonly eights: 1 | 4;
  /** Whether codes are multiplied as bytes (`packedDotCode`); then `eights` is 4. */
  readonly packed: boolean;
}

export const rowsKey = (o: RowsOptions) =>
  `rows ${formatKey(o.format)} ${o.activation} ${o.rows} ${o.lanes} ${o.outputs} ${o.eights} ${[o.bias, o.gathered, o.scaled, o.vectors, o.packed].map(Number).join("")}`;

const threads = 128;

/** Columns of codes from which on threads have enough of them to read several eights for four outputs at once. */
const manyCodes = 1024;

function hasManyCodes({ format, columns }: Pick<GpuMatrix, "format" | "columns">): boolean {
  return format.kind === "quantized" && columns >= manyCodes && columns % (8 * eightsRead(format)) === 0;
}

/**
 * How the work is shared, by what was measured: no more threads per output than have work; and where weights are codes, finding
 * the place of x and reading it costs more than the weights, so that a thread takes more outputs, and of 4 and 2 bits more columns
 * at once, whose codes are one read.
 */
export function rowsSharing(
  gpu: Pick<Gpu, "packsBytes">,
  matrix: Pick<GpuMatrix, "format" | "columns">,
  rows: number,
): Pick<RowsOptions, "lanes" | "outputs" | "eights" | "packed"> {
  const { format, columns } = matrix;
  if (rows === 1 && hasManyCodes(matrix)) {
    const eights = eightsRead(format);
    return { lanes: 64, outputs: eights === 1 ? 4 : 8, eights, packed: gpu.packsBytes && canPack(format) };
  }
  return { lanes: columns >= 256 ? 32 : 8, outputs: 1, eights: 1, packed: false };
}

/** Few columns for which work is shared as for so many; for checks. */
export function leastColumns(matrix: Pick<GpuMatrix, "format" | "columns">): number {
  if (hasManyCodes(matrix)) return manyCodes;
  return matrix.columns >= 256 ? 256 : 16;
}

/** Outputs of one workgroup. */
export const rowsOutputs = ({ lanes, outputs }: Pick<RowsOptions, "lanes" | "outputs">) =>
  (threads / lanes) * outputs;

/**
 * y = activation(x Wᵀ + bias) * factor for few rows of x, as decoding has them: weights are read once, 8 columns per thread
 * and neighbouring threads side by side, and the sums of an output are added in workgroup memory.
 *
 * For gated activations, rows of W are those of up and gate in turn.
 *
 * Bindings: x, W, bias, slots, places (and gate weights) where rows are gathered, y.
 */
export function rowsSource(options: RowsOptions): KernelSource<MatmulParam> {
  const { format, bias, activation, rows, gathered, scaled, vectors, lanes, outputs, eights } = options;
  const stored = "((p.k + 7u) / 8u * 8u)";
  const packed = options.packed && canPack(format) ? packedDotCode("w", format, stored) : undefined;
  const names = isGated(activation) ? ["up", "gate"] : ["up"];
  const turns = names.length;
  const add = (output: number, which: number) =>
    bias
      ? ` + bias[${gathered ? "p.column" : `${turns}u * p.column`} + weight_row_${output} + ${which}u]`
      : "";
  const sums = names.flatMap((name, which) =>
    range(outputs).flatMap((output) =>
      range(rows).map((r) => ({ sum: `${name}_${output}_${r}`, name, which, output, r })),
    ),
  );
  const at = (i: number) => `${i * threads}u + t`;
  const code = `
var<workgroup> sums: array<f32, ${threads * sums.length}>;
${packed ?? dotCode("w", format, stored, eights)}
${activationCode(activation)}
${loadXCode(vectors)}
@compute @workgroup_size(${threads})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) t: u32) {
  let lane = t % ${lanes}u;
  let n = group.x * ${rowsOutputs(options)}u + ${outputs}u * (t / ${lanes}u);
${
  gathered
    ? `  let choice = group.y;
  let slot = slots[choice];
  if (slot < 0) { return; }
  let expert = places[u32(slot)];
  if (expert < p.first || expert >= p.first + p.count) { return; }
  let base = (expert - p.first) * p.n * ${turns}u;
  let first_row = choice;`
    : `  let base = 0u;
  let first_row = group.y * ${rows}u;`
}
${range(outputs)
  .map((o) => `  let weight_row_${o} = base + ${turns}u * min(n + ${o}u, p.n - 1u);`)
  .join("\n")}
${range(rows)
  .map((r) => `  let row_${r} = min(first_row + ${r}u, p.m - 1u) / p.divisor;`)
  .join("\n")}
${sums.map(({ sum }) => `  var ${sum} = 0.0;`).join("\n")}
  for (var k8 = ${eights}u * lane; k8 < (p.k + 7u) / 8u; k8 += ${eights * lanes}u) {
${range(rows)
  .map((r) => {
    const fours = range(2 * eights).map((four) => `load_x(row_${r}, 2u * k8 + ${four}u)`);
    return packed
      ? `    let x_${r} = w_pack(array<vec4f, ${2 * eights}>(${fours.join(", ")}));`
      : fours.map((four, i) => `    let x_${r}_${i} = w_ready(${four});`).join("\n");
  })
  .join("\n")}
${sums
  .map(({ sum, which, output, r }) => {
    const x = packed ? [`x_${r}`] : range(2 * eights).map((four) => `x_${r}_${four}`);
    return `    ${sum} += w_dot(weight_row_${output} + ${which}u, k8, ${x.join(", ")});`;
  })
  .join("\n")}
  }
${sums.map(({ sum }, i) => `  sums[${at(i)}] = ${sum};`).join("\n")}
  for (var step = ${lanes / 2}u; step > 0u; step /= 2u) {
    workgroupBarrier();
    if (lane < step) {
${sums.map((_, i) => `      sums[${at(i)}] += sums[${at(i)} + step];`).join("\n")}
    }
  }
  if (lane == 0u) {
${range(rows)
  .flatMap((r) =>
    range(outputs).map((o) => {
      const scale = scaled ? " * gates[first_row]" : "";
      const sum = (which: number) =>
        `sums[${at(sums.findIndex((one) => one.which === which && one.output === o && one.r === r))}]${scale}${add(o, which)}`;
      return `    if (first_row + ${r}u < p.m && n + ${o}u < p.n) {
      y[(first_row + ${r}u) * p.stride + ${gathered ? "" : "p.column + "}n + ${o}u] = activate(${turns > 1 ? sum(1) : "0.0"}, ${sum(0)}) * p.factor;
    }`;
    }),
  )
  .join("\n")}
  }
}`;
  return {
    name: gathered ? "matmul-gathered" : "matmul-rows",
    params: matmulParams,
    bindings: [
      reads("x", vectors ? "array<vec4f>" : "array<f32>"),
      ...matrixBindings("w", format, eights),
      ...(bias ? [reads("bias", "array<f32>")] : []),
      ...(gathered ? [reads("slots", "array<i32>"), reads("places", "array<u32>")] : []),
      ...(scaled ? [reads("gates", "array<f32>")] : []),
      writes("y", "array<f32>"),
    ],
    code,
  };
}
