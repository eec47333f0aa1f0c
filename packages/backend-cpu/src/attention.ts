import type { DecoderLayer, HeadSpan, LayerSpans } from "@coppice/core";
import {
  type AttentionShape,
  attentionGraph,
  type GroupedQueryShape,
  paddedShape,
  pastNames,
  queryKeyGraph,
  rotaryDimensions,
} from "@coppice/onnx";
import type { Tensor } from "onnxruntime-node";
import type { LayerCache } from "./cache-group.js";
import { type Sights, sightMask } from "./masked-sight.js";
import { pastInputs, receivedByPosition } from "./past-inputs.js";
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
  /** What a plan lets its KV heads see; undefined: what the model does. */
  readonly spans: LayerSpans | undefined;
  /** What a masker lets the sequences see. */
  readonly sights: Sights | undefined;
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
  runtime: Runtime,
  sessions: Sessions,
  request: AttentionRequest,
): Promise<Attended> {
  const { Tensor } = runtime;
  const { layer, hidden, weights, router, unit, cache, selected } = request;
  const shape = paddedShape(layer, hidden.dims[1] as number);
  const earlier =
    cache && unit.behind
      ? pastInputs(runtime, unit, cache.groups, layer.attention, shape, request.sights)
      : undefined;
  const starting = earlier ? undefined : startInputs(runtime, request, shape);
  const feeds: Record<string, Tensor> = {
    hidden,
    ...weights,
    ...router,
    ...unit.feeds,
    ...positionFeeds(request, shape, earlier !== undefined),
    ...starting?.feeds,
    ...earlier?.feeds,
  };
  const options = {
    cache: cache !== undefined,
    ...(earlier && { past: earlier.past }),
    select: selected !== undefined,
    masked: starting?.masked ?? false,
    ...(request.received && { received: true as const }),
  };
  if (request.received && !unit.step) feeds.queries = unit.queries();
  if (selected) {
    const unpad = unit.feeds.unpad?.data as Int32Array | undefined;
    if (unpad) {
      const padded = selected.map((row) => unpad[row] as number);
      feeds.unpad = new Tensor("int32", padded, [padded.length]);
    }
    feeds.select = new Tensor("int32", selected, [selected.length]);
  }
  const results = await sessions.run(
    `attention ${JSON.stringify({ ...shape, ...options })}`,
    () => attentionGraph(shape, options),
    feeds,
  );
  const { normed, residual, logits, received, newKey, newValue } = results;
  cache?.append(unit.pieces, newKey as Tensor, newValue as Tensor);
  const byGroup = () => cache?.groups.map((_, g) => results[pastNames.received(g)] as Tensor) ?? [];
  return {
    normed: normed as Tensor,
    residual: residual as Tensor,
    logits,
    received:
      request.received && cache && earlier
        ? receivedByPosition(runtime, unit, cache.groups, earlier, byGroup())
        : received,
  };
}

/** Queries and keys of rows of `hidden`, for a layer of grouped queries. */
export async function queriesAndKeys(
  sessions: Sessions,
  request: Pick<AttentionRequest, "layer" | "hidden" | "weights" | "unit" | "length" | "rotary">,
): Promise<{ readonly queries: Tensor; readonly keys: Tensor }> {
  const { layer, hidden, weights } = request;
  const shape = paddedShape(layer, hidden.dims[1] as number) as GroupedQueryShape;
  const feeds = { hidden, ...weights, ...positionFeeds(request, shape, true) };
  const key = `queries and keys ${JSON.stringify(shape)}`;
  const { queries, keys } = await sessions.run(key, () => queryKeyGraph(shape), feeds);
  return { queries: queries as Tensor, keys: keys as Tensor };
}

/** What sequences that start here do not see besides what the operator hides by itself. */
function startInputs(
  { Tensor }: Runtime,
  { layer: { attention }, unit, spans, sights }: AttentionRequest,
  shape: AttentionShape,
): { readonly masked: boolean | "heads"; readonly feeds: Feeds } {
  if (sights?.size) {
    const sizes = { heads: shape.heads, longest: unit.longest, places: 0 };
    const dims = [unit.pieces.length, shape.heads, unit.longest, unit.longest];
    const mask = new Tensor("float32", sightMask(sights, unit.pieces, sizes), dims);
    return { masked: true, feeds: { mask } };
  }
  const chunk = attention.kind === "gqa" ? attention.chunk : undefined;
  const hides = (span: HeadSpan | undefined) => span && span.sinks + span.window < unit.longest;
  if (!spans?.some(hides)) {
    const mask = chunk === undefined ? undefined : unit.chunkMask(chunk);
    return { masked: mask !== undefined, feeds: mask ? { mask } : {} };
  }
  const distinct = [...new Map(spans.map((span) => [JSON.stringify(span), span])).values()];
  const mask = unit.startMask(distinct);
  if (distinct.length === 1) return { masked: true, feeds: { mask } };
  const share = shape.heads / spans.length;
  const maskOf = Int32Array.from({ length: shape.heads }, (_, head) => {
    const own = spans[Math.floor(head / share)];
    return distinct.findIndex((span) => span?.window === own?.window);
  });
  return { masked: "heads", feeds: { mask, maskOf: new Tensor("int32", maskOf, [maskOf.length]) } };
}

/** What depends on the positions of the rows. */
function positionFeeds(
  { layer, unit, length, rotary }: Pick<AttentionRequest, "layer" | "unit" | "length" | "rotary">,
  shape: AttentionShape,
  behind: boolean,
): Feeds {
  const { attention } = layer;
  if (attention.kind === "other") return {};
  const tables =
    attention.rotary &&
    rotary.of(attention.rotary, rotaryDimensions(attention, shape)).tables(unit.positions, length);
  const byOperator = shape.kind === "gqa" && shape.rotation === "operator";
  const temperature = attention.kind === "gqa" ? attention.temperature : undefined;
  return {
    ...tables,
    ...(tables && !byOperator && { positions: unit.rowPositions() }),
    ...(tables && byOperator && behind && { turns: unit.turns() }),
    ...(temperature && { temperature: unit.temperature(temperature) }),
  };
}
