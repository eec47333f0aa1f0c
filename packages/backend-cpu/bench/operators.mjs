// node packages/backend-cpu/bench/operators.mjs [--size 4096] [--provider webgpu]
//
// What ONNX Runtime's WebGPU provider takes for products and attention of the shapes that `kernels-webgpu/bench/kernels.mjs`
// measures, for comparison. Times are differences between chains of several and of one of the same operator, so that transfers
// and fixed costs fall out; in float32, with the fallback to the CPU switched off. Medians of 7 runs.
import { parseArgs } from "node:util";
import { encodeModel, GraphBuilder } from "@coppice/onnx";
import { InferenceSession, Tensor } from "onnxruntime-node";

const { values } = parseArgs({
  options: { size: { type: "string", default: "4096" }, provider: { type: "string", default: "webgpu" } },
});
const size = Number(values.size);
const [few, many] = [1, 9];

/** Milliseconds of one operator; `append(graph, x)` adds one to a chain and gives its output. */
async function measure(shape, prepare) {
  const sessions = [];
  for (const count of [few, many]) {
    const graph = new GraphBuilder("chain");
    const start = graph.input("start", []);
    const append = prepare(graph, (name, dims) => graph.node("Expand", [start, graph.int64(dims)], {}, name));
    let x = graph.node("Expand", [start, graph.int64(shape)]);
    for (let i = 0; i < count; i++) x = append(x);
    const sum = graph.node("ReduceSum", [x, graph.int64(shape.map((_, i) => i))], {
      attributes: { keepdims: 0 },
    });
    graph.output(sum, []);
    const model = encodeModel(graph.build());
    const session = await InferenceSession.create(model, {
      executionProviders: [values.provider],
      extra: { session: { disable_cpu_ep_fallback: values.provider === "cpu" ? "0" : "1" } },
    });
    sessions.push({ session, name: graph.build().outputs[0].name });
  }
  const feeds = { start: new Tensor("float32", Float32Array.of(0.001), []) };
  const run = async ({ session }) => {
    const begin = performance.now();
    await session.run(feeds);
    return performance.now() - begin;
  };
  const found = [];
  for (let i = 0; i < 10; i++) {
    const [one, more] = [await run(sessions[0]), await run(sessions[1])];
    if (i >= 3) found.push((more - one) / (many - few));
  }
  for (const { session } of sessions) await session.release();
  return found.sort((a, b) => a - b)[found.length >> 1];
}

console.log("| operator of ONNX Runtime, float32 | ms | rate |\n|---|---|---|");
const row = (what, ms, operations) =>
  console.log(`| ${what} | ${ms.toFixed(3)} | ${(operations / ms / 1e9).toFixed(1)} TFLOP/s |`);

row(
  `MatMul ${size}³`,
  await measure([size, size], (graph, filled) => {
    const weight = filled("weight", [size, size]);
    return (x) => graph.node("MatMul", [x, weight]);
  }),
  2 * size ** 3,
);
row(
  `Gemm ${size}³, the weight transposed`,
  await measure([size, size], (graph, filled) => {
    const weight = filled("weight", [size, size]);
    return (x) => graph.node("Gemm", [x, weight], { attributes: { transB: 1 } });
  }),
  2 * size ** 3,
);
for (const [heads, kvHeads, dim] of [
  [32, 8, 128],
  [8, 2, 64],
]) {
  const ms = await measure([1, size, heads * dim], (graph, filled) => {
    const key = filled("key", [1, size, kvHeads * dim]);
    const value = filled("value", [1, size, kvHeads * dim]);
    const past = graph.weight("past", [1, kvHeads, 0, dim], new Float32Array(0));
    const lengths = graph.node("Cast", [graph.int64([size - 1], [1])], { attributes: { to: 6 } });
    const total = graph.node("Cast", [graph.int64([size], [1])], { attributes: { to: 6 } });
    return (x) => {
      const names = ["mixed", "keys", "values"].map((word) => graph.name(word));
      graph.nodes("GroupQueryAttention", [x, key, value, past, past, lengths, total], names, {
        domain: "com.microsoft",
        attributes: { num_heads: heads, kv_num_heads: kvHeads, scale: { float: dim ** -0.5 } },
      });
      return names[0];
    };
  });
  row(
    `GroupQueryAttention of ${size} tokens, ${heads}/${kvHeads} heads of ${dim}`,
    ms,
    2 * size ** 2 * heads * dim,
  );
}
process.exit();
