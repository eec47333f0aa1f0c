import type { ActivationSpec } from "@coppice/core";
import { type ActivationKind, activationParams, isGated } from "./activation-code.js";
import type { Gpu } from "./gpu.js";
import type { GpuBuffer } from "./gpu-buffer.js";
import { type GpuMatrix, partBuffers } from "./gpu-matrix.js";
import { rowsKey, rowsOutputs, rowsSource } from "./rows-code.js";
import { tiledKey, tiledSource } from "./tiled-code.js";

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

/** Matrices of some experts: `up`, and `gate` for gated activations, in equal parts. */
export interface ExpertStack {
  readonly up: GpuMatrix;
  readonly gate?: GpuMatrix | undefined;
  /** [blocks, rows] */
  readonly upBias?: GpuBuffer | undefined;
  readonly gateBias?: GpuBuffer | undefined;
}

/** Rows of a tile of sorted choices. */
export const groupedTile = 64;

/** For every choice, the projection of its expert; `stacks` may differ in their formats. */
export function expertMatmul(gpu: Gpu, call: ExpertMatmulCall): void {
  const { choices, x, perChoice, stacks, activation, scaled = false, y, half = false } = call;
  const { tokens, topK, slots, gates, places, sorted } = choices;
  const kind: ActivationKind = activation?.kind ?? "none";
  const gated = isGated(kind);
  let first = 0;
  for (const { up, gate, upBias, gateBias } of stacks) {
    const { format, rows, columns } = up;
    const bias = upBias !== undefined;
    const shared = { format, bias, activation: kind, scaled, vectors: columns % 4 === 0 };
    const tiledOptions = { ...shared, grouped: true, half, tile: groupedTile } as const;
    const rowsOptions = { ...shared, rows: 1, gathered: true } as const;
    const kernel = sorted
      ? gpu.kernel(tiledKey(tiledOptions), () => tiledSource(tiledOptions))
      : gpu.kernel(rowsKey(rowsOptions), () => rowsSource(rowsOptions));
    const across = Math.ceil(rows / (sorted ? (gated ? groupedTile / 2 : groupedTile) : rowsOutputs));
    const biases = bias ? [upBias, ...(gated ? [gateBias as GpuBuffer] : [])] : [];
    up.parts.forEach((part, i) => {
      const matrices = [part, ...(gated ? [(gate as GpuMatrix).parts[i] ?? part] : [])].flatMap(partBuffers);
      const where = sorted ? [sorted.order, sorted.tiles] : [slots, places];
      const params = {
        m: tokens * topK,
        n: rows,
        k: columns,
        divisor: perChoice ? 1 : topK,
        first: first + part.first,
        count: part.count,
        column: 0,
        stride: rows,
        factor: 1,
        ...activationParams(activation),
      };
      const buffers = [x, ...matrices, ...biases, ...where, ...(scaled ? [gates] : []), y];
      gpu.commands.dispatch(kernel, buffers, params, across, sorted ? sorted.most : tokens * topK);
    });
    first += up.blocks;
  }
}
