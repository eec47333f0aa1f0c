import type { AttentionShape, WeightFormat } from "@coppice/kernels-webgpu";
import { type Graph, GraphBuilder, quantizedLinear } from "@coppice/onnx";

type Codes = WeightFormat & { readonly kind: "quantized" };

/** Graphs of one operator. Inputs and the output `y` have the names of the calls that they answer. */

/** `y = (x Wᵀ + bias) * factor`, W [N, K] float32. */
export function gemmGraph(bias: boolean, factor: number): Graph {
  const graph = new GraphBuilder("product");
  const inputs = [graph.input("x", ["rows", "columns"]), graph.input("weight", ["outputs", "columns"])];
  if (bias) inputs.push(graph.input("bias", ["outputs"]));
  const attributes = { transB: 1, alpha: { float: factor }, beta: { float: factor } };
  graph.output(graph.node("Gemm", inputs, { attributes }, "y"), ["rows", "outputs"]);
  return graph.build();
}

/** The same with W as codes without zero points. */
export function codesGraph(
  { bits, groupSize }: Codes,
  outputs: number,
  columns: number,
  bias: boolean,
  factor: number,
): Graph {
  const graph = new GraphBuilder("product of codes");
  const groups = columns / groupSize;
  const x = graph.input("x", ["rows", columns]);
  const weight = {
    codes: graph.input("weight", [outputs, groups, (groupSize * bits) / 8], "uint8"),
    scales: graph.input("scales", [outputs, groups]),
  };
  const added = bias ? graph.input("bias", [outputs]) : undefined;
  const plain = added === undefined && factor === 1;
  const shape = { rows: outputs, columns, bits, groupSize };
  const options = plain ? { output: "y" } : {};
  const product = quantizedLinear(graph, x, weight, shape, "float32", undefined, options);
  if (added !== undefined) {
    const sum = graph.node("Add", [product, added], {}, factor === 1 ? "y" : undefined);
    if (factor !== 1) graph.node("Mul", [sum, graph.float32(factor)], {}, "y");
  } else if (!plain) graph.node("Mul", [product, graph.float32(factor)], {}, "y");
  graph.output("y", ["rows", outputs]);
  return graph.build();
}

/** RMS norm of rows. */
export function normGraph(epsilon: number): Graph {
  const graph = new GraphBuilder("norm");
  const inputs = [graph.input("x", ["rows", "size"]), graph.input("weight", ["size"])];
  const attributes = { axis: -1, stash_type: 1, epsilon: { float: epsilon } };
  const y = graph.node("SimplifiedLayerNormalization", inputs, { attributes }, "y");
  graph.output(y, ["rows", "size"]);
  return graph.build();
}

/** Causal attention of whole sequences, without a past. */
export function attentionGraph({ heads, kvHeads, keyDim, scale, window }: AttentionShape): Graph {
  const graph = new GraphBuilder("attention");
  const tokens = (name: string, count: number) => graph.input(name, ["sequences", "length", count * keyDim]);
  const inputs = [tokens("queries", heads), tokens("keys", kvHeads), tokens("values", kvHeads), "", ""];
  // Of every sequence the place of its last key, and how many keys the longest has; on the host.
  inputs.push(graph.input("last", ["sequences"], "int32"), graph.input("length", [1], "int32"));
  graph.nodes("GroupQueryAttention", inputs, ["y", "kept keys", "kept values"], {
    domain: "com.microsoft",
    attributes: {
      num_heads: heads,
      kv_num_heads: kvHeads,
      scale: { float: scale },
      ...(window > 0 && { local_window_size: window }),
    },
  });
  graph.output("y", ["sequences", "length", heads * keyDim]);
  return graph.build();
}
