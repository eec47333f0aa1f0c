import { blockMask, type LayerSpans, seesKey, spanMask } from "@coppice/core";
import { encodeModel, GraphBuilder } from "@coppice/onnx";
import { InferenceSession, Tensor } from "onnxruntime-node";
import { describe, test } from "vitest";
import { expectClose, int32, random, tensor } from "./run-graph.js";

// What core calls a block mask is what the operator that its layout is taken from reads.

const [heads, kvHeads, size, blockSize] = [4, 2, 8, 16];
/** The last block is not full. */
const [length, blocks] = [75, 5];
const capacity = blocks * blockSize;

function graph(layouts: number, most: number) {
  const build = new GraphBuilder("sparse");
  const inputs = [
    build.input("query", [1, length, heads * size]),
    build.input("key", [1, length, kvHeads * size]),
    build.input("value", [1, length, kvHeads * size]),
    build.input("past_key", [1, kvHeads, capacity, size]),
    build.input("past_value", [1, kvHeads, capacity, size]),
    build.input("rows", [layouts, blocks + 1], "int32"),
    build.input("columns", [layouts, most], "int32"),
    build.input("total", [1], "int32"),
    build.input("lengths", [1], "int32"),
  ];
  const attributes = {
    num_heads: heads,
    kv_num_heads: kvHeads,
    sparse_block_size: blockSize,
    scale: { float: size ** -0.5 },
    do_rotary: 0,
  };
  const domain = "com.microsoft";
  build.nodes("SparseAttention", inputs, ["y", "present_key", "present_value"], { attributes, domain });
  build.output("y", [1, length, heads * size]);
  build.output("present_key", [1, kvHeads, capacity, size]);
  build.output("present_value", [1, kvHeads, capacity, size]);
  return build.build();
}

const spans: LayerSpans = [
  { sinks: 5, window: 20 },
  { sinks: 16, window: 33 },
];
const masks = {
  "spans of every KV head": spanMask(spans, heads, length, blockSize),
  "one span for all": spanMask([spans[0], spans[0]], heads, length, blockSize),
  "any blocks": blockMask(
    blockSize,
    blocks,
    heads,
    (head, row, column) => row === column || (3 * row + 5 * column + head) % 3 === 0,
  ),
};

describe("a block mask in SparseAttention", () => {
  test.each(Object.entries(masks))("shows what core says that it shows: %s", async (_, mask) => {
    const [queries, keys, values] = [
      random(length, heads * size),
      random(length, kvHeads * size),
      random(length, kvHeads * size),
    ];
    const expected = queries.map((row, i) =>
      Array.from({ length: heads }, (_, head) => {
        const shared = Math.floor((head * kvHeads) / heads) * size;
        const seen = keys.map((_, key) => key).filter((key) => seesKey(mask, head, i, key));
        const score = (key: number) =>
          Array.from({ length: size }, (_, d) => row[head * size + d]! * keys[key]![shared + d]!).reduce(
            (sum, value) => sum + value,
          ) / Math.sqrt(size);
        const weights = seen.map((key) => Math.exp(score(key)));
        const sum = weights.reduce((total, weight) => total + weight);
        return Array.from({ length: size }, (_, d) =>
          seen.reduce((total, key, k) => total + (weights[k]! / sum) * values[key]![shared + d]!, 0),
        );
      }).flat(),
    );
    const { layouts } = mask;
    const most = mask.columns.length / layouts;
    const session = await InferenceSession.create(encodeModel(graph(layouts, most)), {
      intraOpNumThreads: 1,
      logSeverityLevel: 4,
    });
    const empty = () =>
      new Tensor("float32", new Float32Array(kvHeads * capacity * size), [1, kvHeads, capacity, size]);
    // The operator wants the cache that it reads to be the one that it writes.
    const [pastKey, pastValue] = [empty(), empty()];
    try {
      const { y } = await session.run(
        {
          query: tensor(queries, [1, length, heads * size]),
          key: tensor(keys, [1, length, kvHeads * size]),
          value: tensor(values, [1, length, kvHeads * size]),
          past_key: pastKey,
          past_value: pastValue,
          rows: new Tensor("int32", mask.rows, [layouts, blocks + 1]),
          columns: new Tensor("int32", mask.columns, [layouts, most]),
          total: int32([length]),
          lengths: int32([length]),
        },
        {
          y: new Tensor("float32", new Float32Array(length * heads * size), [1, length, heads * size]),
          present_key: pastKey,
          present_value: pastValue,
        },
      );
      expectClose(y, expected);
    } finally {
      await session.release();
    }
  });
});
