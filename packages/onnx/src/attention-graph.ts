import { attentionOperator, type OperatorInputs } from "./attention-operator.js";
import { type AttentionPast, attendPast, headsFirst, pastParts, sumReceived } from "./attention-past.js";
import { type AttentionShape, type GroupedQueryShape, operatorHeads } from "./attention-shape.js";
import { attendStep } from "./attention-step.js";
import { type Graph, GraphBuilder, type Value } from "./graph-builder.js";
import { groupedQueryInputs } from "./grouped-query.js";
import { cutHeads, operatorRotation, type RotateHeads, rotateHeads, type TokenRows } from "./heads.js";
import { latentInputs } from "./latent.js";
import { addAndNorm, norm } from "./norms.js";
import { inputWeights, type PartWeights } from "./part-weights.js";

export interface AttentionGraphOptions {
  /** Give the keys and values of the new tokens. */
  readonly cache: boolean;
  /** Earlier keys and values; absent: all sequences start here. */
  readonly past?: AttentionPast;
  /** Give only some rows of the result: the input `select` names their rows in `hidden`. */
  readonly select: boolean;
  /** Without a past: take `mask`, which is added to the scores; `heads`: heads have different ones. */
  readonly masked: boolean | "heads";
  /** Give the attention that every position receives as well; takes `queries`. */
  readonly received?: true;
}

/**
 * Everything of a decoder layer before its experts, over packed rows: norm, attention with rotary positions,
 * residual, norm, router. Weights are inputs, so that one session serves all layers of a shape.
 *
 * N rows of hidden states belong to B sequences, padded to S tokens only around the attention operator itself;
 * several padded tokens may name the same row. A head of the operator has `size` dimensions (`operatorHeads`).
 *
 * Inputs: `hidden` [N, hidden]; `attentionNorm`, `feedForwardNorm` [hidden] and where the norms have them
 * `attentionNormBias`, `feedForwardNormBias`; those of `groupedQueryInputs` or `latentInputs`; `output` [hidden, heads
 * dimensions of a value] and `outputBias`; `router` [E, hidden] and `routerBias` [E]; `pad` int32 [B, S], the row of
 * every padded token; `unpad` int32 [R], the padded token of every result row; `select` int32 [R]; `cos`, `sin`
 * [M, rotaryDimensions / 2] with M above all positions; `positions` int32 [N], where positions turn row by row, as they
 * always do behind a past; `sinks` [heads]; `queries` bool [B, 1, S, 1], false for padding.
 *
 * Without a past: `lengths` int32 [B], tokens of each sequence less one; `total` int32 [], the most of a sequence; `mask`
 * [B or 1, 1, S, S], or for different heads [B or 1, masks, S, S] and `maskOf` int32 [heads], the mask of each.
 *
 * Behind a past, for every group g of KV heads (`pastNames`): `pastKey0`, `pastValue0` [B, its KV heads, P, size] in any
 * order of positions; `mask0` [B or 1, its query heads or 1, S, P + S]; `heads0` int32, which KV heads it has, and `order` int32
 * [kvHeads], the place of each behind one another, when there are several groups; `lengths0` int32 [B], filled places of the
 * past and new tokens less one, and `total0`, the most of them: the filled places come first, and new tokens directly behind
 * them. Where the operator could rotate, `turns` int64 [N, 1] instead of `positions`.
 *
 * For one step behind a past, rows are sequences: no `pad`, `unpad`, `queries`, lengths and totals. All places are seen that no
 * mask hides, [B or 1, KV heads of the group or 1, query heads of each or 1, P + 1], and `sizes0` is int64: P, 1, and another 1
 * where there are sinks.
 *
 * Outputs: `normed` [R, hidden], what the feed-forward block reads; `residual` [R, hidden], what is added to its
 * result; `logits` [R, E]; with a cache `newKey`, `newValue` [B, kvHeads, S, size], positions turned into keys; on request
 * `received` [B, S], the attention probabilities of every position summed over heads and `queries`, with anything behind
 * the last position of a sequence. Behind a past `received0` [B, P + S] for every group instead, and of a step another column
 * where there are sinks.
 *
 * Operators: ONNX Runtime's GroupQueryAttention (causal; masks, windows and sinks are inputs and attributes of it),
 * SimplifiedLayerNormalization (root mean square) and SkipSimplifiedLayerNormalization.
 */
export function attentionGraph(shape: AttentionShape, options: AttentionGraphOptions): Graph {
  const { hidden, heads } = shape;
  const { size } = operatorHeads(shape);
  const graph = new GraphBuilder("attention");
  const weights = inputWeights(graph);
  const rows = options.select ? "R" : "N";
  const input = graph.input("hidden", ["N", hidden]);
  const normed = norm(graph, weights, input, "attentionNorm", hidden, shape.attentionNorm);
  const select = options.select ? graph.input("select", ["R"], "int32") : "";
  const take = (value: Value, at: Value) =>
    at === "" ? value : graph.node("Gather", [value, at], { attributes: { axis: 0 } });
  let gathered: Value;
  if (options.past?.by === "step") {
    gathered = take(oneStep(graph, weights, shape, options.past, options, normed), select);
  } else {
    const pad = graph.input("pad", ["B", "S"], "int32");
    // Several padded tokens may name the same row.
    const tokens: TokenRows = (value) => take(value, pad);
    const heard = options.past
      ? behindPast(graph, weights, shape, options.past, options, normed, tokens)
      : fromStart(graph, weights, shape, options, normed, tokens);
    const flat = graph.node("Reshape", [heard, graph.int64([-1, heads * size])]);
    gathered = take(flat, graph.input("unpad", [rows], "int32"));
  }
  const valueDim = shape.kind === "gqa" ? shape.headDim : shape.valueDim;
  const attended = cutHeads(graph, gathered, heads, size, valueDim);
  const projected = weights.linear(attended, "output", [hidden, heads * valueDim], {
    bias: shape.outputBias,
  });
  const skip = take(input, select);
  const names = { sum: "residual", normed: "normed" };
  addAndNorm(graph, weights, [projected, skip], "feedForwardNorm", hidden, shape.feedForwardNorm, names);
  graph.output("normed", [rows, hidden]);
  graph.output("residual", [rows, hidden]);
  if (shape.router) {
    const { bias } = shape.router;
    weights.linear("normed", "router", ["E", hidden], { bias, output: "logits" });
    graph.output("logits", [rows, "E"]);
  }
  return graph.build();
}

/** [B, S, heads size], what sequences attend to that start here. */
function fromStart(
  graph: GraphBuilder,
  weights: PartWeights,
  shape: AttentionShape,
  { cache, masked, received }: AttentionGraphOptions,
  normed: Value,
  tokens: TokenRows,
): Value {
  const inOperator = shape.kind === "gqa" && shape.rotation === "operator";
  const turns = inOperator ? tables(graph, shape) : (["", ""] as const);
  const operands = operatorInputs(graph, weights, shape, normed, tokens, "within");
  const lengths = graph.input("lengths", ["B"], "int32");
  const total = graph.input("total", [], "int32");
  const sinks = shape.kind === "gqa" && shape.sinks ? graph.input("sinks", [shape.heads]) : "";
  let mask = masked ? graph.input("mask", ["masked sequences", "masks", "S", "T"]) : "";
  if (masked === "heads") {
    const of = graph.input("maskOf", [shape.heads], "int32");
    mask = graph.node("Gather", [mask, of], { attributes: { axis: 1 } });
  }
  // Without a cache the operator is spared writing keys and values a second time, up to half of its time.
  const present = cache ? ["newKey", "newValue"] : [];
  const outputs = received
    ? ["attended", ...(cache ? present : ["", ""]), "probabilities"]
    : ["attended", ...present];
  const state = { lengths, total, cos: turns[0], sin: turns[1], mask, sinks };
  attentionOperator(graph, shape, operands, state, outputs);
  if (cache) newOutputs(graph, shape);
  if (received)
    sumReceived(graph, "probabilities", graph.input("queries", ["B", 1, "S", 1], "bool"), "received");
  return "attended";
}

/** [B, S, heads size], what tokens attend to behind a past. */
function behindPast(
  graph: GraphBuilder,
  weights: PartWeights,
  shape: AttentionShape,
  past: AttentionPast,
  { cache, received }: AttentionGraphOptions,
  normed: Value,
  tokens: TokenRows,
): Value {
  const { kvHeads, size } = operatorHeads(shape);
  const operands = operatorInputs(graph, weights, shape, normed, tokens, "before");
  if (cache) {
    headsFirst(graph, operands.key, kvHeads, size, "newKey");
    headsFirst(graph, operands.value, kvHeads, size, "newValue");
    newOutputs(graph, shape);
  }
  const queries = received ? graph.input("queries", ["B", 1, "S", 1], "bool") : "";
  return attendPast(pastParts(graph, shape, past), operands, queries);
}

/** [N, heads size], what one token of every sequence attends to: rows are sequences. */
function oneStep(
  graph: GraphBuilder,
  weights: PartWeights,
  shape: AttentionShape,
  past: AttentionPast,
  { cache, received }: AttentionGraphOptions,
  normed: Value,
): Value {
  const { kvHeads, size } = operatorHeads(shape);
  const operands = operatorInputs(graph, weights, shape, normed, (rows) => rows, "before");
  const heads = (value: Value, name: string) =>
    graph.node("Reshape", [value, graph.int64([-1, kvHeads, 1, size])], {}, name);
  const own = { key: heads(operands.key, "newKey"), value: heads(operands.value, "newValue") };
  if (cache) newOutputs(graph, shape);
  return attendStep(pastParts(graph, shape, past), operands, received === true, own);
}

/** @param rotation whether the operator rotates, where it can, or heads are rotated before it, each kind on its own */
export function operatorInputs(
  graph: GraphBuilder,
  weights: PartWeights,
  shape: AttentionShape,
  normed: Value,
  tokens: TokenRows,
  rotation: "within" | "before",
): OperatorInputs {
  if (shape.kind === "mla") {
    return latentInputs(graph, weights, shape, normed, tokens, ofRows(graph, tables(graph, shape)));
  }
  const together = rotation === "within";
  const rotate = together && shape.rotation === "operator" ? undefined : rotationOf(graph, shape);
  return groupedQueryInputs(graph, weights, shape, normed, tokens, rotate, together);
}

function rotationOf(graph: GraphBuilder, shape: GroupedQueryShape): RotateHeads | undefined {
  if (shape.rotaryDimensions === 0) return undefined;
  if (shape.rotation === "operator") {
    return operatorRotation(graph, tables(graph, shape), graph.input("turns", ["N", 1], "int64"));
  }
  const rotation = ofRows(graph, tables(graph, shape));
  return (value, heads, dimensions) => rotateHeads(graph, value, heads, dimensions, rotation);
}

function newOutputs(graph: GraphBuilder, shape: AttentionShape): void {
  const { kvHeads, size } = operatorHeads(shape);
  graph.output("newKey", ["B", kvHeads, "S", size]);
  graph.output("newValue", ["B", kvHeads, "S", size]);
}

function tables(graph: GraphBuilder, shape: AttentionShape): readonly [Value, Value] {
  const size = ["M", shape.rotaryDimensions / 2];
  return [graph.input("cos", size), graph.input("sin", size)];
}

/** Cosines and sines of every row, [N, 1, rotaryDimensions / 2], by the input `positions` int32 [N]. */
function ofRows(graph: GraphBuilder, [cos, sin]: readonly [Value, Value]): readonly [Value, Value] {
  const positions = graph.input("positions", ["N"], "int32");
  const rows = (table: Value) => {
    const taken = graph.node("Gather", [table, positions], { attributes: { axis: 0 } });
    return graph.node("Unsqueeze", [taken, graph.int64([1])]);
  };
  return [rows(cos), rows(sin)];
}
