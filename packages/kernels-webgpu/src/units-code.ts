import type { MatrixUnits } from "./gpu.js";
import type { KernelSource } from "./kernel.js";
import type { MatmulParam } from "./matmul-code.js";
import { range } from "./range.js";
import { type Tile, type TileOptions, tileFrame, tileKey } from "./tile-frame.js";

export const unitsKey = (options: TileOptions) => `units ${tileKey(options)}`;

/** Columns of x per step. */
const step = 32;
/** Values behind each row in workgroup memory: neighbouring rows then begin in different banks (measured: twice as fast). */
const pad = 8;
/** Subgroups of a workgroup, down the rows and across the columns of its tile. */
const subgroups = (tile: Tile): readonly [number, number] => (tile === 128 ? [2, 4] : [2, 2]);

/** Bytes of workgroup memory that a tile takes. */
export function unitsBytes(tile: Tile, { m, n }: MatrixUnits): number {
  const [down, across] = subgroups(tile);
  return 2 * 2 * tile * (step + pad) + 4 * down * across * m * n;
}

/**
 * The same as `tiledSource` with tiles of 64 or 128 on the units of a device that multiply matrices of float16 and sum in float32
 * (cooperative matrices of Vulkan, SIMD-group matrices of Metal; WGSL extension `chromium_experimental_subgroup_matrix`). x and W
 * are rounded to float16.
 */
export function unitsSource(options: TileOptions, units: MatrixUnits): KernelSource<MatmulParam> {
  const { tile, grouped } = options;
  const { m, n, k, lanes } = units;
  const frame = tileFrame(options);
  const { turns, columns } = frame;
  const [down, across] = subgroups(tile);
  const threads = down * across * lanes;
  const stride = step + pad;
  const eights = step / 8;
  const loads = (tile * eights) / threads;
  // Matrices of a subgroup: rows, and columns of each turn.
  const rowMatrices = tile / down / m;
  const columnMatrices = columns / across / n;
  const matrices = range(rowMatrices).flatMap((i) =>
    range(turns).flatMap((turn) =>
      range(columnMatrices).map((j) => ({ i, turn, j, name: `sum_${i}_${turn}_${j}` })),
    ),
  );
  const perLane = (m * n) / lanes;
  const load = (kind: string, from: string, at: string, order: string) =>
    `subgroupMatrixLoad<${kind}, ${order}>(&${from}, ${at}, ${stride}u)`;
  const columnAt = (turn: number, j: number) =>
    `(${turn * columns + j * n}u + across * ${columns / across}u)`;

  const readStep = (k8: string) =>
    range(loads)
      .map(
        (i) => `    {
      let k = ${k8} + eight;
      x_${i} = x_columns(x_row_${i}, k, x_inside_${i} && k < steps);
      w_${i} = w_columns(w_row_${i}, k, w_inside_${i} && k < steps);
    }`,
      )
      .join("\n");
  const store = (target: string, source: string) =>
    range(8)
      .map((c) => `      ${target}[at + ${c}u] = f16(${source}[${Math.floor(c / 4)}][${c % 4}]);`)
      .join("\n");
  /** Gives every lane its values of a matrix, through workgroup memory. */
  const spread = (
    name: string,
    sum: string,
  ) => `    subgroupMatrixStore<row_major>(&out, subgroup * ${m * n}u, ${sum}, ${n}u);
    workgroupBarrier();
${range(perLane)
  .map((e) => `    let ${name}_${e} = out[subgroup * ${m * n}u + lane + ${e * lanes}u];`)
  .join("\n")}
    workgroupBarrier();`;
  const code = `
var<workgroup> x_tile: array<f16, ${tile * stride}>;
var<workgroup> w_tile: array<f16, ${tile * stride}>;
var<workgroup> out: array<f32, ${down * across * m * n}>;
${frame.functions}
@compute @workgroup_size(${threads})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) t: u32) {
${frame.place}
  let steps = (p.k + 7u) / 8u;
  // Subgroups hold neighbouring threads, ${lanes} each.
  let subgroup = t / ${lanes}u;
  let lane = t % ${lanes}u;
  let down = subgroup / ${across}u;
  let across = subgroup % ${across}u;
  let eight = t % ${eights}u;
${range(loads)
  .map(
    (i) => `  let at_${i} = t / ${eights}u + ${(i * threads) / eights}u;
  let x_inside_${i} = at_${i} < rows;
  var x_row_${i} = 0u;
  if (x_inside_${i}) { x_row_${i} = ${frame.rowOf(`at_${i}`)}; }
  let w_row_${i} = ${frame.weightRow(`at_${i}`)};
  let w_inside_${i} = ${frame.weightInside(`at_${i}`)};
  var x_${i} = array<vec4f, 2>(vec4f(0.0), vec4f(0.0));
  var w_${i} = x_${i};`,
  )
  .join("\n")}
${matrices.map(({ name }) => `  var ${name}: subgroup_matrix_result<f32, ${n}, ${m}>;`).join("\n")}
${readStep("0u")}
  for (var k8 = 0u; k8 < steps; k8 += ${eights}u) {
${range(loads)
  .map(
    (i) => `    {
      let at = at_${i} * ${stride}u + 8u * eight;
${store("x_tile", `x_${i}`)}
${store("w_tile", `w_${i}`)}
    }`,
  )
  .join("\n")}
    workgroupBarrier();
${readStep(`(k8 + ${eights}u)`)}
${range(step / k)
  .map(
    (part) => `    {
${range(rowMatrices)
  .map(
    (i) =>
      `      let x_${part}_${i} = ${load(`subgroup_matrix_left<f16, ${k}, ${m}>`, "x_tile", `(down * ${tile / down}u + ${i * m}u) * ${stride}u + ${part * k}u`, "row_major")};`,
  )
  .join("\n")}
${range(turns)
  .flatMap((turn) =>
    range(columnMatrices).map(
      (j) => `      {
        let w = ${load(`subgroup_matrix_right<f16, ${n}, ${k}>`, "w_tile", `${columnAt(turn, j)} * ${stride}u + ${part * k}u`, "col_major")};
${range(rowMatrices)
  .map(
    (i) =>
      `        sum_${i}_${turn}_${j} = subgroupMatrixMultiplyAccumulate(x_${part}_${i}, w, sum_${i}_${turn}_${j});`,
  )
  .join("\n")}
      }`,
    ),
  )
  .join("\n")}
    }`,
  )
  .join("\n")}
    workgroupBarrier();
  }
${range(rowMatrices)
  .flatMap((i) =>
    range(columnMatrices).map(
      (j) => `  {
${range(turns)
  .map((turn) => spread(turn === 0 ? "up" : "gate", `sum_${i}_${turn}_${j}`))
  .join("\n")}
${range(perLane)
  .map(
    (e) => `    {
      let in_tile = down * ${tile / down}u + ${i * m}u + (lane + ${e * lanes}u) / ${n}u;
      let at = n0 + ${columnAt(0, j)} + (lane + ${e * lanes}u) % ${n}u;
      if (in_tile < rows && at < p.n) {
        let row = ${frame.rowOf("in_tile")};
        ${frame.write("row", "at", `up_${e}`, turns === 2 ? `gate_${e}` : "0.0")}
      }
    }`,
  )
  .join("\n")}
  }`,
    ),
  )
  .join("\n")}
}`;
  return {
    name: grouped ? "matmul-grouped" : "matmul-tiled",
    enable: ["f16", "chromium_experimental_subgroup_matrix"],
    // What depends on the subgroup is equal within it, which the compiler cannot see.
    unchecked: ["chromium.subgroup_matrix_uniformity"],
    params: frame.params,
    bindings: frame.bindings,
    code,
  };
}
