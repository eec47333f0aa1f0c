import { decodeModel, encodeModel } from "@coppice/onnx";

/** Nearer router logits of the last expert that is chosen and the first that is not are a tie: rounding may decide. */
const tie = 0.01;

/**
 * Compares every layer of an exported graph, as ONNX Runtime runs it, with the reference backend on the dequantized weights and
 * the same input. Tokens at a tie between two experts are left out: there the layer is no continuous function.
 * @returns per layer the cosine of what it puts out, and of what it adds to its input, and how many tokens were at a tie
 */
export async function layerAgreement({ loaded, files, runner, runtime, ids }) {
  const { model, weights } = loaded;
  let input = embedded(model, await weights.read(model.embedding), ids);
  const agreement = [];
  for (const [layer, output] of (await hiddenStates(files, model, runtime, ids)).entries()) {
    const to = layer + 1;
    const range = { from: layer, to, boundaries: [to] };
    const hidden = layer > 0 && { hidden: input };
    const margins = new Float32Array(ids.length).fill(Number.POSITIVE_INFINITY);
    const tap = { fields: ["routerLogits"], onLayer: (seen) => setMargins(margins, seen) };
    const ran = await runner.run({ sequences: [ids], ...range, ...hidden, tap });
    const compared = Array.from(margins.keys()).filter((token) => margins[token] >= tie);
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
      ties: ids.length - compared.length,
    });
    input = output;
  }
  return agreement;
}

/** How far the router's logits of the last expert that a token chooses are above those of the next. */
function setMargins(margins, { tokens, topK, rows, routerLogits }) {
  const slots = routerLogits.length / tokens;
  if (slots === topK) return;
  for (let t = 0; t < tokens; t++) {
    const sorted = routerLogits.slice(t * slots, (t + 1) * slots).sort((a, b) => b - a);
    margins[rows[t]] = sorted[topK - 1] - sorted[topK];
  }
}

/** What the first layer reads, [tokens, hidden]. */
function embedded({ hiddenSize, embeddingScale = 1 }, table, ids) {
  const rows = Array.from(ids, (id) => table.subarray(id * hiddenSize, (id + 1) * hiddenSize));
  return Float32Array.from(rows.flatMap((row) => Array.from(row, (value) => embeddingScale * value)));
}

/** What every layer puts out, [tokens, hidden] each: sums that the graph makes anyway, asked for as outputs. */
async function hiddenStates(files, model, { InferenceSession, Tensor }, ids) {
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
    const outputs = await session.run(feeds, wanted);
    return wanted.map((one) => Float32Array.from(outputs[one].data));
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
