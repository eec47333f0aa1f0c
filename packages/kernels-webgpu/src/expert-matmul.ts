import type { ActivationSpec } from "@coppice/core";
import { type ActivationKind, activationParams, isGated } from "./activation-code.js";
import type { Gpu } from "./gpu.js";
import type { GpuBuffer } from "./gpu-buffer.js";
import { type GpuMatrix, partBuffers } from "./gpu-matrix.js";
import { type ProductKernel, productKernel } from "./product-kernel.js";
import { rowsKey, rowsOutputs, rowsSharing, rowsSource } from "./rows-code.js";
import { serialKernel } from "./serial-kernel.js";
import type { Tile } from "./tile-frame.js";

/** Which expert every choice of every token goes to; a choice is `token * topK + rank`. */
export interface Choices {
  readonly tokens: number;
  readonly topK: number;
  /** [tokens, topK] i32, -1 for a choice that does not run. */
  readonly slots: GpuBuffer;
  /** [tokens, topK] f32 */
  readonly gates: GpuBuffer;
  /** [slots] u32: the block of the matrices that serves each slot. */
  readonly places: GpuBuffer;
  readonly slotCount: number;
  /** Of many tokens (`sortChoices`); absent: every choice is computed by itself. */
  readonly sorted?: SortedChoices | undefined;
}

/** Choices in the order of their slots, cut into tiles of one slot each. */
export interface SortedChoices {
  /** [tokens * topK] u32 */
  readonly order: GpuBuffer;
  /** Number of tiles, then for each: block, first place in `order`, choices. vec4u */
  readonly tiles: GpuBuffer;
  /** Most tiles that there can be. */
  readonly most: number;
  /** Rows of a tile. */
  readonly tile: Tile;
}

export interface ExpertMatmulCall {
  readonly choices: Choices;
  /** One row per token, or one per choice (`perChoice`). */
  readonly x: GpuBuffer;
  readonly perChoice: boolean;
  /** Stacks of blocks, one after another; the places count through all of them. */
  readonly stacks: readonly ExpertStack[];
  /** Of the units; absent: y is the projection itself. */
  readonly activation?: ActivationSpec | undefined;
  /** Whether the input of a choice is multiplied by its gate weight. */
  readonly scaled?: boolean;
  /** [tokens * topK, rows of the matrices]; rows of choices that do not run stay. */
  readonly y: GpuBuffer;
  readonly half?: boolean;
}

/** Matrices of some experts, one block each; for gated activations, rows of up and gate in turn. */
export interface ExpertStack {
  readonly matrix: GpuMatrix;
  /** [blocks, rows] */
  readonly bias?: GpuBuffer | undefined;
}

/** For every choice, the projection of its expert; `stacks` may differ in their formats. */
export function expertMatmul(gpu: Gpu, call: ExpertMatmulCall): void {
  const { choices, x, perChoice, stacks, activation, scaled = false, y } = call;
  const { tokens, topK, slots, gates, places, sorted } = choices;
  const kind: ActivationKind = activation?.kind ?? "none";
  let first = 0;
  for (const stack of stacks) {
    const { matrix, bias } = stack;
    const { columns, parts, blocks } = matrix;
    const rows = matrix.rows / (isGated(kind) ? 2 : 1);
    const { kernel, across: perGroup } = gpu.serial
      ? serialKernel(gpu, {
          matrix,
          bias: bias !== undefined,
          activation,
          scaled,
          of: sorted ? "tile" : "choice",
          rows: sorted?.tile ?? 1,
        })
      : parallelKernel(gpu, call, stack);
    const across = Math.ceil(rows / perGroup);
    const where = sorted ? [sorted.order, sorted.tiles] : [slots, places];
    for (const part of parts) {
      const params = {
        m: tokens * topK,
        n: rows,
        k: columns,
        divisor: perChoice ? 1 : topK,
        first: first + part.first,
        count: part.count,
        // Where the biases of the part begin.
        column: part.first * matrix.rows,
        stride: rows,
        factor: 1,
        ...activationParams(activation),
      };
      const buffers = [
        x,
        ...partBuffers(part),
        ...(bias ? [bias] : []),
        ...where,
        ...(scaled ? [gates] : []),
        y,
      ];
      gpu.commands.dispatch(kernel, buffers, params, across, sorted ? sorted.most : tokens * topK);
    }
    first += blocks;
  }
}

function parallelKernel(
  gpu: Gpu,
  { choices: { sorted }, activation, scaled = false, half = false }: ExpertMatmulCall,
  { matrix, bias }: ExpertStack,
): ProductKernel {
  const { format, columns } = matrix;
  const kind: ActivationKind = activation?.kind ?? "none";
  const shared = { format, bias: bias !== undefined, activation: kind, scaled, vectors: columns % 4 === 0 };
  if (sorted) {
    const { tile } = sorted;
    return productKernel(gpu, { ...shared, grouped: true, tile }, half);
  }
  const options = { ...shared, rows: 1, gathered: true, ...rowsSharing(gpu, matrix, 1) } as const;
  const kernel = gpu.kernel(rowsKey(options), () => rowsSource(options));
  return { kernel, across: rowsOutputs(options), down: 1 };
}
