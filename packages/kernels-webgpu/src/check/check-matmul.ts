import {
  type ActivationSpec,
  dequantizeMatrix,
  packBits,
  type QuantizedMatrix,
  roundToDtype,
} from "@coppice/core";
import { embed } from "../embedding.js";
import { expertMatmul } from "../expert-matmul.js";
import type { Gpu } from "../gpu.js";
import {
  createMatrix,
  disposeMatrix,
  formatKey,
  type GpuMatrix,
  type WeightFormat,
  writeQuantized,
  writeRows,
} from "../gpu-matrix.js";
import { fewRows, type MatmulCall, matmul } from "../matmul.js";
import { sortChoices, sortedBytes } from "../sort-choices.js";
import type { Tile } from "../tile-frame.js";
import {
  type Implementation,
  type KernelCheck,
  randomValues,
  withBuffers,
  worstDifference,
} from "./kernel-check.js";

export interface MatmulShape {
  readonly format: WeightFormat;
  readonly rows: number;
  readonly columns: number;
  readonly outputs: number;
  readonly bias: boolean;
  readonly half?: boolean;
  /** Absent: our kernel. */
  readonly by?: Implementation<MatmulCall>;
}

/** Random weights that a format holds exactly, on the device and as numbers. */
export function randomMatrix(
  gpu: Gpu,
  format: WeightFormat,
  [blocks, rows, columns]: readonly [number, number, number],
  seed: number,
): { matrix: GpuMatrix; values: Float32Array } {
  const matrix = createMatrix(gpu, { format, blocks, rows, columns }, "a check");
  const count = blocks * rows;
  if (format.kind !== "quantized") {
    const values = randomValues(count * columns, seed);
    roundToDtype(values, format.kind === "bf16" ? "BF16" : format.kind === "f16" ? "F16" : "F32");
    writeRows(gpu, matrix, 0, values);
    return { matrix, values };
  }
  const { bits, groupSize, zeros } = format;
  const integers = (length: number, salt: number) =>
    Uint8Array.from(randomValues(length, seed + salt), (value) => Math.floor(((value + 1) / 2) * 2 ** bits));
  const groups = columns / groupSize;
  const quantized: QuantizedMatrix = {
    rows: count,
    columns,
    bits,
    groupSize,
    codes: packBits(integers(count * columns, 1), count, bits),
    scales: randomValues(count * groups, seed + 2).map((value) => value / 2 ** bits),
    ...(zeros && { zeroPoints: packBits(integers(count * groups, 3), count, bits) }),
  };
  writeQuantized(gpu, matrix, 0, quantized);
  return { matrix, values: dequantizeMatrix(quantized) };
}

/** y = x Wᵀ + bias in float64. */
function slowMatmul(x: Float32Array, w: Float32Array, columns: number, bias?: Float32Array): number[] {
  const outputs = w.length / columns;
  return Array.from({ length: (x.length / columns) * outputs }, (_, at) => {
    const [row, output] = [Math.floor(at / outputs), at % outputs];
    let sum = bias?.[output] ?? 0;
    for (let i = 0; i < columns; i++)
      sum += (x[row * columns + i] as number) * (w[output * columns + i] as number);
    return sum;
  });
}

export function checkMatmul({
  format,
  rows,
  columns,
  outputs,
  bias,
  half = false,
  by = { name: rows <= fewRows ? "matmul-rows" : "matmul-tiled", run: matmul },
}: MatmulShape): KernelCheck {
  return {
    kernel: by.name,
    key: `${by.name} ${formatKey(format)} ${rows}x${columns}x${outputs} ${bias} ${half}`,
    // Values of about 1: half has 11 bits.
    tolerance: (half ? 2e-3 : 2e-6) * columns,
    run: (gpu) =>
      withBuffers(gpu, async (own) => {
        const { upload, empty } = own;
        const x = randomValues(rows * columns, 1);
        const { matrix, values } = randomMatrix(gpu, format, [outputs, 1, columns], 2);
        const b = bias ? randomValues(outputs, 3) : undefined;
        const y = empty(rows * outputs);
        const call = { x: upload(x), rows, weight: matrix, bias: b && upload(b), y, factor: 0.5, half };
        await by.run(gpu, call, own);
        const found = await gpu.readFloats(y, rows * outputs);
        disposeMatrix(matrix);
        return worstDifference(
          found,
          slowMatmul(x, values, columns, b).map((value) => value / 2),
        );
      }),
  };
}

/** Rows of a matrix, in the order of some ids. */
export function checkEmbedding(format: WeightFormat, rows: number, columns: number): KernelCheck {
  return {
    kernel: "embed",
    key: `embed ${formatKey(format)} ${rows}x${columns}`,
    tolerance: 1e-6,
    run: (gpu) =>
      withBuffers(gpu, async ({ upload, empty }) => {
        const { matrix, values } = randomMatrix(gpu, format, [rows, 1, columns], 4);
        const ids = Uint32Array.from({ length: 5 }, (_, i) => (7 * i + rows - 1) % rows);
        const y = empty(ids.length * columns);
        embed(gpu, matrix, upload(ids), ids.length, y, 2);
        const found = await gpu.readFloats(y, ids.length * columns);
        disposeMatrix(matrix);
        const expected = [...ids].flatMap((id) =>
          Array.from(values.subarray(id * columns, (id + 1) * columns), (v) => 2 * v),
        );
        return worstDifference(found, expected);
      }),
  };
}

export interface ExpertsShape {
  readonly format: WeightFormat;
  readonly tokens: number;
  readonly topK: number;
  readonly experts: number;
  readonly columns: number;
  readonly outputs: number;
  readonly bias: boolean;
  readonly activation: ActivationSpec | undefined;
  readonly scaled: boolean;
  readonly perChoice: boolean;
  /** Sorted into tiles, or every choice by itself. */
  readonly sorted: boolean;
  /** Default: as their number says. */
  readonly tile?: Tile;
  readonly half?: boolean;
}

const sigmoid = (value: number) => 1 / (1 + Math.exp(-value));

/** The formulas of `ActivationSpec` in float64. */
function slowActivation(activation: ActivationSpec | undefined, gate: number, up: number): number {
  if (!activation) return up;
  if (activation.kind === "silu") return gate * sigmoid(gate) * up;
  if (activation.kind === "relu2") return Math.max(0, up) ** 2;
  const { limit, alpha } = activation;
  const g = Math.min(gate, limit);
  return (Math.min(limit, Math.max(-limit, up)) + 1) * g * sigmoid(alpha * g);
}

/** Experts in two stacks, some choices that do not run, and slots that stand in another order than the experts. */
export function checkExperts(shape: ExpertsShape): KernelCheck {
  const { format, tokens, topK, experts, columns, outputs, bias, activation, scaled, perChoice, sorted } =
    shape;
  const { half = false, tile } = shape;
  return {
    kernel: sorted ? "matmul-grouped" : "matmul-gathered",
    key: `experts ${JSON.stringify(shape)}`,
    tolerance: (half ? 4e-3 : 4e-6) * columns * (activation ? 4 : 1),
    run: (gpu) =>
      withBuffers(gpu, async ({ upload, empty }) => {
        const turns = activation && activation.kind !== "relu2" ? 2 : 1;
        const choices = tokens * topK;
        const x = randomValues((perChoice ? choices : tokens) * columns, 1);
        const gates = randomValues(choices, 2);
        const slots = Int32Array.from(randomValues(choices, 3), (v, i) =>
          i % 7 === 6 ? -1 : Math.min(experts - 1, Math.floor(((v + 1) / 2) * experts)),
        );
        const places = Uint32Array.from({ length: experts }, (_, slot) => experts - 1 - slot);
        const first = Math.ceil(experts / 2);
        const stacks = [first, experts - first].map((blocks, i) => {
          const { matrix, values } = randomMatrix(
            gpu,
            format,
            [blocks, turns * outputs, columns],
            10 * i + 4,
          );
          return {
            matrix,
            values,
            bias: bias ? randomValues(blocks * turns * outputs, 10 * i + 6) : undefined,
          };
        });
        const y = empty(choices * outputs);
        const bytes = sortedBytes(choices, experts, tile);
        const own = {
          tokens,
          topK,
          slots: upload(slots),
          gates: upload(gates),
          places: upload(places),
          slotCount: experts,
        };
        const counts = empty(1);
        const inOrder = sorted
          ? sortChoices(
              gpu,
              own,
              { order: empty(bytes.order / 4), tiles: empty(bytes.tiles / 4) },
              counts,
              tile,
            )
          : undefined;
        expertMatmul(gpu, {
          choices: { ...own, sorted: inOrder },
          x: upload(x),
          perChoice,
          stacks: stacks.map(({ matrix, bias }) => ({ matrix, bias: bias && upload(bias) })),
          activation,
          scaled,
          y,
          half,
        });
        const found = await gpu.readFloats(y, choices * outputs);
        const counted = new Uint32Array((await gpu.readFloats(counts, 1)).buffer)[0];
        for (const { matrix } of stacks) disposeMatrix(matrix);
        if (sorted && counted !== slots.filter((slot) => slot >= 0).length) return Number.NaN;
        const expected = Array.from(slots).flatMap((slot, choice) => {
          if (slot < 0) return new Array<number>(outputs).fill(0);
          const place = places[slot] as number;
          const stack = stacks[place < first ? 0 : 1] as (typeof stacks)[number];
          const block = place < first ? place : place - first;
          const row = perChoice ? choice : Math.floor(choice / topK);
          const input = x
            .subarray(row * columns, (row + 1) * columns)
            .map((value) => value * (scaled ? (gates[choice] as number) : 1));
          const size = turns * outputs;
          const weights = stack.values.subarray(block * size * columns, (block + 1) * size * columns);
          const all = slowMatmul(
            input,
            weights,
            columns,
            stack.bias?.subarray(block * size, (block + 1) * size),
          );
          return Array.from({ length: outputs }, (_, i) =>
            slowActivation(activation, all[turns * i + 1] as number, all[turns * i] as number),
          );
        });
        return worstDifference(found, expected);
      }),
  };
}
