import type { DecoderLayer } from "@coppice/core";
import { attentionGraph } from "@coppice/onnx";
import type { Tensor } from "onnxruntime-node";
import { headLayout, paddedShape } from "./head-layout.js";
import type { LayerCache } from "./kv-cache.js";
import type { PackedRows } from "./packed-rows.js";
import type { RotaryTable } from "./rotary-table.js";
import type { Feeds, Runtime, Sessions } from "./sessions.js";
import type { Piece } from "./units.js";

/** The inputs of the attention graph that are equal in all layers of a unit. */
export interface UnitFeeds {
  readonly feeds: Feeds;
  /** Tokens that the longest sequence has by now, its past included. */
  readonly positions: number;
}

export function unitFeeds(
  { Tensor }: Runtime,
  pieces: readonly Piece[],
  { pad, unpad, longest }: PackedRows,
): UnitFeeds {
  const lengths = Int32Array.from(pieces, ({ begin, end, past }) => past + end - begin - 1);
  const positions = Math.max(...lengths) + 1;
  const feeds = {
    pad: new Tensor("int32", pad, [pieces.length, longest]),
    unpad: new Tensor("int32", unpad, [unpad.length]),
    lengths: new Tensor("int32", lengths, [pieces.length]),
    total: new Tensor("int32", Int32Array.of(positions), []),
  };
  return { feeds, positions };
}

export interface AttentionRequest {
  readonly layer: DecoderLayer;
  readonly hidden: Tensor;
  readonly weights: Feeds;
  readonly router: Tensor | undefined;
  readonly unit: UnitFeeds;
  readonly rotary: RotaryTable;
  readonly cache: LayerCache | undefined;
  /** Rows whose result is wanted; absent: all. */
  readonly selected: Int32Array | undefined;
}

/** `normed` and `residual` [rows, hidden] for the feed-forward block, and in an MoE layer the router's `logits`. */
export async function runAttention(
  { Tensor }: Runtime,
  sessions: Sessions,
  request: AttentionRequest,
): Promise<{ normed: Tensor; residual: Tensor; logits: Tensor | undefined }> {
  const { layer, hidden, weights, router, unit, rotary, cache, selected } = request;
  const shape = paddedShape(layer, hidden.dims[1] as number, headLayout(layer.attention));
  const options = { cache: cache !== undefined, select: selected !== undefined };
  const feeds: Record<string, Tensor> = {
    hidden,
    ...weights,
    ...unit.feeds,
    ...rotary.tables(unit.positions),
  };
  if (router) feeds.router = router;
  if (selected) {
    const unpad = unit.feeds.unpad?.data as Int32Array;
    const padded = selected.map((row) => unpad[row] as number);
    feeds.unpad = new Tensor("int32", padded, [padded.length]);
    feeds.select = new Tensor("int32", selected, [selected.length]);
  }
  if (cache) {
    feeds.pastKey = cache.key;
    feeds.pastValue = cache.value;
  }
  const { normed, residual, logits } = await sessions.run(
    `attention ${JSON.stringify({ ...shape, ...options })}`,
    () => attentionGraph(shape, options),
    feeds,
    // The very arrays that hold the past: the operator then writes behind it instead of copying it elsewhere.
    cache && { presentKey: cache.key, presentValue: cache.value },
  );
  return { normed: normed as Tensor, residual: residual as Tensor, logits };
}
