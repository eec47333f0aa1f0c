import type { DecoderLayer } from "@coppice/core";
import { type AttentionShape, attentionGraph, paddedShape, rotaryDimensions } from "@coppice/onnx";
import type { Tensor } from "onnxruntime-node";
import type { LayerCache } from "./kv-cache.js";
import type { RotaryTables } from "./rotary-table.js";
import type { Feeds, Runtime, Sessions } from "./sessions.js";
import type { UnitInputs } from "./unit-inputs.js";

export interface AttentionRequest {
  readonly layer: DecoderLayer;
  readonly hidden: Tensor;
  readonly weights: Feeds;
  /** Inputs of the graph that depend on the plan: those of the router. */
  readonly router: Feeds;
  readonly unit: UnitInputs;
  /** Tokens that the unit's sequences have in all: they are of one rotary regime. */
  readonly length: number;
  readonly rotary: RotaryTables;
  readonly cache: LayerCache | undefined;
  /** Rows whose result is wanted; absent: all. */
  readonly selected: Int32Array | undefined;
  /** Whether the attention that positions receive is wanted. */
  readonly received: boolean;
}

export interface Attended {
  /** [rows, hidden], what the feed-forward block reads and what it adds to. */
  readonly normed: Tensor;
  readonly residual: Tensor;
  /** [rows, slots], in an MoE layer. */
  readonly logits: Tensor | undefined;
  /** [pieces, positions], on request: what tokens of the unit give each position, summed over heads. */
  readonly received: Tensor | undefined;
}

export async function runAttention(
  { Tensor }: Runtime,
  sessions: Sessions,
  request: AttentionRequest,
): Promise<Attended> {
  const { layer, hidden, weights, router, unit, cache, selected } = request;
  const shape = paddedShape(layer, hidden.dims[1] as number);
  const feeds: Record<string, Tensor> = {
    hidden,
    ...weights,
    ...router,
    ...unit.feeds,
    ...positionFeeds(request, shape),
  };
  const masked = feeds.mask !== undefined;
  const options = {
    cache: cache !== undefined,
    select: selected !== undefined,
    masked,
    ...(request.received && { received: true as const }),
  };
  if (request.received) feeds.queries = unit.queries();
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
  const { normed, residual, logits, received } = await sessions.run(
    `attention ${JSON.stringify({ ...shape, ...options })}`,
    () => attentionGraph(shape, options),
    feeds,
    // The very arrays that hold the past: the operator then writes behind it instead of copying it elsewhere.
    cache && { presentKey: cache.key, presentValue: cache.value },
  );
  return { normed: normed as Tensor, residual: residual as Tensor, logits, received };
}

/** What depends on the positions of the rows. */
function positionFeeds({ layer, unit, length, rotary }: AttentionRequest, shape: AttentionShape): Feeds {
  const { attention } = layer;
  if (attention.kind === "other") return {};
  const tables =
    attention.rotary &&
    rotary.of(attention.rotary, rotaryDimensions(attention, shape)).tables(unit.positions, length);
  const inOperator = shape.kind === "gqa" && shape.rotation === "operator";
  const chunk = attention.kind === "gqa" ? attention.chunk : undefined;
  const temperature = attention.kind === "gqa" ? attention.temperature : undefined;
  const mask = chunk === undefined ? undefined : unit.chunkMask(chunk);
  return {
    ...tables,
    ...(tables && !inOperator && { positions: unit.rowPositions() }),
    ...(temperature && { temperature: unit.temperature(temperature) }),
    ...(mask && { mask }),
  };
}
