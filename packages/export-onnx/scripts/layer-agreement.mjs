import { decodeModel, encodeModel } from "@coppice/onnx";

/**
 * Compares every layer of an exported graph, as ONNX Runtime runs it, with the reference backend on the dequantized weights and
 * the same input. Tokens that chose other experts there are left out: rounding decides between two that are nearly as good, and
 * the layer is no continuous function then.
 * @param files exported with `expertOutputs`
 * @returns per layer the cosine of what it puts out, and of what it adds to its input; how many tokens chose other experts, and
 * how much worse these were at most, by the router's logits
 */
export async function layerAgreement({ loaded, files, runner, runtime, ids }) {
  const { model, weights } = loaded;
  let input = embedded(model, await weights.read(model.embedding), ids);
  const agreement = [];
  for (const [layer, { output, experts }] of (await layerOutputs(files, model, runtime, ids)).entries()) {
    const to = layer + 1;
    const range = { from: layer, to, boundaries: [to] };
    const hidden = layer > 0 && { hidden: input };
    /** By token, how much worse the experts were that it chose instead; undefined: it chose the same. */
    const worse = [];
    const tap = { fields: ["routerLogits", "routing"], onLayer: (seen) => setWorse(worse, seen, experts) };
    const ran = await runner.run({ sequences: [ids], ...range, ...hidden, tap });
    const compared = Array.from(ids.keys()).filter((token) => worse[token] === undefined);
    const rowsOf = (values) =>
      compared.flatMap((token) =>
        Array.from(values.subarray(token * model.hiddenSize, (token + 1) * model.hiddenSize)),
      );
    const [before, found, expected] = [input, output, ran.boundaries.get(to)].map(rowsOf);
    const added = (values) => values.map((value, i) => value - before[i]);
    agreement.push({
      layer,
      output: cosine(found, expected),
      added: cosine(added(found), added(expected)),
      moved: ids.length - compared.length,
      worse: worse.reduce((most, one = 0) => Math.max(most, one), 0),
    });
    input = output;
  }
  return agreement;
}

/** @param experts [tokens, topK], those that ONNX Runtime chose */
function setWorse(worse, { tokens, topK, rows, routerLogits, slots }, experts) {
  const count = routerLogits.length / tokens;
  for (let t = 0; t < tokens; t++) {
    const row = rows[t];
    const logits = routerLogits.subarray(t * count, (t + 1) * count);
    const expected = Array.from(slots.subarray(t * topK, (t + 1) * topK));
    const found = Array.from(experts.subarray(row * topK, (row + 1) * topK));
    const logitsOf = (list, others) => list.filter((one) => !others.includes(one)).map((one) => logits[one]);
    const [lost, won] = [logitsOf(expected, found), logitsOf(found, expected)];
    if (lost.length > 0) worse[row] = Math.max(...lost) - Math.min(...won);
  }
}

/** What the first layer reads, [tokens, hidden]. */
function embedded({ hiddenSize, embeddingScale = 1 }, table, ids) {
  const rows = Array.from(ids, (id) => table.subarray(id * hiddenSize, (id + 1) * hiddenSize));
  return Float32Array.from(rows.flatMap((row) => Array.from(row, (value) => embeddingScale * value)));
}

/** What every layer puts out, [tokens, hidden], which the graph sums up anyway, and the experts that it chose, [tokens, topK]. */
async function layerOutputs(files, model, { InferenceSession, Tensor }, ids) {
  const name = [...files.keys()].find((file) => file.endsWith(".onnx"));
  const graph = decodeModel(files.get(name));
  const sums = graph.nodes.flatMap(({ outputs }) => outputs.filter((one) => /^residual_\d+$/.test(one)));
  // Behind attention and behind the feed-forward block of every layer.
  const layers = model.layers.length;
  if (sums.length !== 2 * layers)
    throw new Error(`the graph has ${sums.length} sums, expected ${2 * layers}`);
  const wanted = sums.filter((_, i) => i % 2 === 1);
  const shown = wanted.map((one) => ({ name: one, type: "float32", shape: ["rows", "hidden"] }));
  const bytes = encodeModel({ ...graph, outputs: [...graph.outputs, ...shown] });
  const externalData = [...files]
    .filter(([file]) => file.includes(".onnx_data"))
    .map(([file, data]) => ({ path: file.replace(/^onnx\//, ""), data }));
  const session = await InferenceSession.create(bytes, {
    intraOpNumThreads: 1,
    logSeverityLevel: 3,
    externalData,
  });
  try {
    const int64 = (values, dims) => new Tensor("int64", BigInt64Array.from(values, BigInt), dims);
    const feeds = {
      input_ids: int64(ids, [1, ids.length]),
      attention_mask: int64(new Array(ids.length).fill(1), [1, ids.length]),
      num_logits_to_keep: int64([0], []),
    };
    for (const input of session.inputMetadata) {
      if (!input.name.startsWith("past_key_values.")) continue;
      const [, heads, , size] = input.shape;
      feeds[input.name] = new Tensor("float32", new Float32Array(0), [1, heads, 0, size]);
    }
    const chosen = wanted.map((_, layer) => `experts.${layer}`);
    const outputs = await session.run(feeds, [...wanted, ...chosen]);
    return wanted.map((one, layer) => ({
      output: Float32Array.from(outputs[one].data),
      experts: Int32Array.from(outputs[chosen[layer]].data),
    }));
  } finally {
    await session.release();
  }
}

function cosine(a, b) {
  let [ab, aa, bb] = [0, 0, 0];
  for (let i = 0; i < b.length; i++) {
    ab += a[i] * b[i];
    aa += a[i] * a[i];
    bb += b[i] * b[i];
  }
  return ab / Math.sqrt(aa * bb);
}
