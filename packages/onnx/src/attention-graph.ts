import type { DecoderLayer } from "@coppice/core";
import { type Graph, GraphBuilder, type Value } from "./graph-builder.js";

/** All that an attention graph depends on; layers with equal shapes share one graph. Plain data. */
export interface AttentionShape {
  readonly hidden: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  /** Factor on q·k before softmax. */
  readonly scale: number;
  /** Dimensions of each head that rotate. */
  readonly rotaryDimensions: number;
  /** Keys that a query sees, itself included; absent: all before it. */
  readonly window?: number;
  readonly inputBias: boolean;
  readonly outputBias: boolean;
  readonly attentionEpsilon: number;
  readonly feedForwardEpsilon: number;
  /** Epsilon of the norm over each query head (Qwen3). */
  readonly queryEpsilon?: number;
  readonly keyEpsilon?: number;
  /** True when a router follows, whose logits the graph gives as well. */
  readonly router: boolean;
}

export interface AttentionGraphOptions {
  /** Take earlier keys and values (`pastKey`, `pastValue`) and give the extended ones. */
  readonly cache: boolean;
  /** Give only some rows of the result: the input `select` names their rows in `hidden`. */
  readonly select: boolean;
}

/** The shape of a decoder layer's attention. */
export function attentionShape(layer: DecoderLayer, hidden: number): AttentionShape {
  const { attention, attentionNorm, feedForward, feedForwardNorm } = layer;
  const { heads, kvHeads, headDim, scale, rotary, slidingWindow, queryNorm, keyNorm } = attention;
  const { query, key, value, output } = attention;
  return {
    hidden,
    heads,
    kvHeads,
    headDim,
    scale,
    rotaryDimensions: rotary.dimensions,
    ...(slidingWindow !== undefined && { window: slidingWindow }),
    inputBias: [query, key, value].some((linear) => linear.bias !== undefined),
    outputBias: output.bias !== undefined,
    attentionEpsilon: attentionNorm.epsilon,
    feedForwardEpsilon: feedForwardNorm.epsilon,
    ...(queryNorm && { queryEpsilon: queryNorm.epsilon }),
    ...(keyNorm && { keyEpsilon: keyNorm.epsilon }),
    router: feedForward.kind === "moe",
  };
}

/**
 * Everything of a decoder layer before its experts, over packed rows: norm, attention with rotary positions,
 * residual, norm, router. Weights are inputs, so that one session serves all layers of a shape.
 *
 * N rows of hidden states belong to B sequences, padded to S tokens only around the attention operator itself;
 * several padded tokens may name the same row. P positions of past lie right-padded in the cache.
 *
 * Inputs: `hidden` [N, hidden]; `attentionNorm`, `feedForwardNorm` [hidden]; `qkv` [(heads + 2 kvHeads) headDim,
 * hidden] (query, key and value weights one below the other) and `qkvBias`; `queryNorm`, `keyNorm` [headDim];
 * `output` [hidden, heads headDim] and `outputBias`; `router` [E, hidden]; `pad` int32 [B, S], the row of every
 * padded token; `unpad` int32 [R], the padded token of every result row; `select` int32 [R]; `lengths` int32 [B],
 * past and present tokens of each sequence less one; `total` int32 [], the most tokens of a sequence; `cos`, `sin`
 * [M, rotaryDimensions / 2] with M >= total; with a cache `pastKey`, `pastValue` [B, kvHeads, P, headDim].
 *
 * Outputs: `normed` [R, hidden], what the feed-forward block reads; `residual` [R, hidden], what is added to its
 * result; `logits` [R, E]; with a cache `presentKey`, `presentValue` [B, kvHeads, max(P, total), headDim].
 *
 * Operators: ONNX Runtime's GroupQueryAttention, SimplifiedLayerNormalization (root mean square) and
 * SkipSimplifiedLayerNormalization.
 */
export function attentionGraph(shape: AttentionShape, options: AttentionGraphOptions): Graph {
  const { hidden, heads, kvHeads, headDim } = shape;
  const graph = new GraphBuilder("attention");
  const rows = options.select ? "R" : "N";
  const width = (heads + 2 * kvHeads) * headDim;
  const input = graph.input("hidden", ["N", hidden]);
  const normed = rmsNorm(graph, input, graph.input("attentionNorm", [hidden]), shape.attentionEpsilon);
  const qkv = graph.node("Gemm", [normed, graph.input("qkv", [width, hidden]), ...bias("qkvBias", width)], {
    attributes: { transB: 1 },
  });
  const pad = graph.input("pad", ["B", "S"], "int32");
  const padded = (value: Value) => graph.node("Gather", [value, pad], { attributes: { axis: 0 } });

  let query = "";
  let key = "";
  let value = "";
  if (shape.queryEpsilon === undefined && shape.keyEpsilon === undefined) {
    query = padded(qkv);
  } else {
    const sizes = graph.int64([heads * headDim, kvHeads * headDim, kvHeads * headDim]);
    graph.nodes("Split", [qkv, sizes], ["query", "key", "value"], { attributes: { axis: 1 } });
    query = padded(headNorm("query", "queryNorm", heads, shape.queryEpsilon));
    key = padded(headNorm("key", "keyNorm", kvHeads, shape.keyEpsilon));
    value = padded("value");
  }

  const past = options.cache
    ? ["pastKey", "pastValue"].map((name) => graph.input(name, ["B", kvHeads, "P", headDim]))
    : ["", ""];
  const lengths = graph.input("lengths", ["B"], "int32");
  const total = graph.input("total", [], "int32");
  const table = ["cos", "sin"].map((name) => graph.input(name, ["M", shape.rotaryDimensions / 2]));
  graph.nodes(
    "GroupQueryAttention",
    [query, key, value, ...past, lengths, total, ...table],
    // Without a cache the operator is spared writing keys and values a second time, up to half of its time.
    options.cache ? ["attended", "presentKey", "presentValue"] : ["attended"],
    {
      domain: "com.microsoft",
      attributes: {
        num_heads: heads,
        kv_num_heads: kvHeads,
        scale: { float: shape.scale },
        do_rotary: 1,
        rotary_interleaved: 0,
        ...(shape.window !== undefined && { local_window_size: shape.window }),
      },
    },
  );
  const flat = graph.node("Reshape", ["attended", graph.int64([-1, heads * headDim])]);
  const unpad = graph.input("unpad", [rows], "int32");
  const attended = graph.node("Gather", [flat, unpad], { attributes: { axis: 0 } });
  const output = graph.input("output", [hidden, heads * headDim]);
  const projected = graph.node("Gemm", [attended, output, ...bias("outputBias", hidden)], {
    attributes: { transB: 1 },
  });
  const skip = options.select
    ? graph.node("Gather", [input, graph.input("select", ["R"], "int32")], { attributes: { axis: 0 } })
    : input;
  const norm = graph.input("feedForwardNorm", [hidden]);
  graph.nodes("SkipSimplifiedLayerNormalization", [projected, skip, norm], ["normed", "", "", "residual"], {
    domain: "com.microsoft",
    attributes: { epsilon: { float: shape.feedForwardEpsilon } },
  });
  graph.output("normed", [rows, hidden]);
  graph.output("residual", [rows, hidden]);
  if (shape.router) {
    graph.nodes("Gemm", ["normed", graph.input("router", ["E", hidden])], ["logits"], {
      attributes: { transB: 1 },
    });
    graph.output("logits", [rows, "E"]);
  }
  if (options.cache) {
    graph.output("presentKey", ["B", kvHeads, "Q", headDim]);
    graph.output("presentValue", ["B", kvHeads, "Q", headDim]);
  }
  return graph.build();

  function bias(name: "qkvBias" | "outputBias", size: number): Value[] {
    const present = name === "qkvBias" ? shape.inputBias : shape.outputBias;
    return present ? [graph.input(name, [size])] : [];
  }

  function headNorm(value: Value, name: string, count: number, epsilon: number | undefined): Value {
    if (epsilon === undefined) return value;
    const split = graph.node("Reshape", [value, graph.int64([-1, count, headDim])]);
    const normed = rmsNorm(graph, split, graph.input(name, [headDim]), epsilon);
    return graph.node("Reshape", [normed, graph.int64([-1, count * headDim])]);
  }
}

/** Root-mean-square norm over the last axis, computed in float32. */
export function rmsNorm(graph: GraphBuilder, value: Value, weight: Value, epsilon: number): Value {
  return graph.node("SimplifiedLayerNormalization", [value, weight], {
    attributes: { axis: -1, epsilon: { float: epsilon }, stash_type: 1 },
  });
}
