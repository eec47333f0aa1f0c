// The ways to express one MoE layer that graph-forms.mjs compares: Mixtral's routing, weights of one layer.
import { routeTokens } from "@coppice/core";
import { encodeModel, GraphBuilder, inputWeights, mlp, moeGraph } from "@coppice/onnx";
import * as ort from "onnxruntime-node";

const tensor = (type, data, dims) => new ort.Tensor(type, data, dims);

function open(graph) {
  return ort.InferenceSession.create(encodeModel(graph), {
    intraOpNumThreads: 1,
    interOpNumThreads: 1,
    graphOptimizationLevel: "all",
    enableMemPattern: false,
    enableCpuMemArena: false,
    logSeverityLevel: 4,
    extra: { session: { intra_op: { allow_spinning: "0" } } },
  });
}

/**
 * Forms by name, each a function (normed, residual, logits) -> Promise<Float32Array>.
 * @param layer { hidden, width, router, experts: { gate, up, down }[] }, weights as Float32Array
 */
export async function moeForms(layer) {
  const { hidden, width, router, experts } = layer;
  const slots = experts.length;
  const { topK } = router;
  const shapes = { gate: [width, hidden], up: [width, hidden], down: [hidden, width] };
  const weights = {};
  for (const [slot, expert] of experts.entries()) {
    for (const [part, dims] of Object.entries(shapes)) {
      weights[`${part}${slot}`] = tensor("float32", expert[part], dims);
    }
  }
  const rows = (values) => tensor("float32", values, [values.length / hidden, hidden]);
  const grouped = await groupedForm(layer, weights);

  const inGraph = await open(inGraphForm(hidden, width, slots, topK));
  const single = await open(singleForm(hidden, width));
  const operator = await open(operatorForm(hidden, width, slots, topK));
  const interleaved = interleave(layer);
  const perSlot = experts.map((_, slot) => ({
    gate: weights[`gate${slot}`],
    up: weights[`up${slot}`],
    down: weights[`down${slot}`],
  }));

  return {
    grouped: grouped.inputs,
    "grouped, initializers": grouped.initializers,
    "routed in graph": async (normed, residual, logits) => {
      const dims = [normed.length / hidden, slots];
      const feeds = {
        normed: rows(normed),
        residual: rows(residual),
        logits: tensor("float32", logits, dims),
      };
      return (await inGraph.run({ ...feeds, ...weights })).result.data;
    },
    "one run per expert": async (normed, residual, logits) => {
      const tokens = normed.length / hidden;
      const routing = routeTokens(logits, tokens, router);
      const result = residual.slice();
      for (let slot = 0; slot < slots; slot++) {
        const choices = [];
        for (let i = 0; i < routing.slots.length; i++) if (routing.slots[i] === slot) choices.push(i);
        if (choices.length === 0) continue;
        const x = new Float32Array(choices.length * hidden);
        for (const [i, choice] of choices.entries()) {
          const from = Math.floor(choice / topK) * hidden;
          x.set(normed.subarray(from, from + hidden), i * hidden);
        }
        const y = (await single.run({ x: rows(x), ...perSlot[slot] })).y.data;
        for (const [i, choice] of choices.entries()) {
          const [gate, to, from] = [routing.gates[choice], Math.floor(choice / topK) * hidden, i * hidden];
          for (let d = 0; d < hidden; d++) result[to + d] += gate * y[from + d];
        }
      }
      return result;
    },
    "MoE operator": async (normed, residual, logits) => {
      const dims = [normed.length / hidden, slots];
      const feeds = {
        normed: rows(normed),
        residual: rows(residual),
        logits: tensor("float32", logits, dims),
      };
      return (await operator.run({ ...feeds, ...interleaved })).result.data;
    },
  };
}

/** The backend's own form, with weights as inputs and, for comparison, inside the graph. */
async function groupedForm({ hidden, width, router, experts }, weights) {
  const { topK } = router;
  const slots = experts.length;
  const graphOf = (count) => moeGraph(shapeOf(hidden, width), { slots: count, topK, expertOutputs: false });
  const graph = graphOf(slots);
  const inside = {
    ...graph,
    inputs: graph.inputs.filter(({ name }) => !(name in weights)),
    initializers: [
      ...graph.initializers,
      ...Object.entries(weights).map(([name, { data, dims }]) => ({
        name,
        type: "float32",
        shape: dims,
        bytes: new Uint8Array(data.buffer, data.byteOffset, data.byteLength),
      })),
    ],
  };
  const sessions = new Map();
  const inputs = async (used, feeds) => {
    if (!sessions.has(used.length)) sessions.set(used.length, await open(graphOf(used.length)));
    const chosen = {};
    for (const [i, slot] of used.entries()) {
      for (const part of ["gate", "up", "down"]) chosen[`${part}${i}`] = weights[`${part}${slot}`];
    }
    return sessions.get(used.length).run({ ...feeds, ...chosen });
  };
  const whole = await open(inside);
  const run = (skipUnused, execute) => async (normed, residual, logits) => {
    const tokens = normed.length / hidden;
    const routing = routeTokens(logits, tokens, router);
    const counts = new Int32Array(slots);
    for (const slot of routing.slots) counts[slot]++;
    const next = counts.map((_, slot) => counts.subarray(0, slot).reduce((sum, count) => sum + count, 0));
    const [rows, places] = [new Int32Array(tokens * topK), new Int32Array(tokens * topK)];
    const gates = new Float32Array(tokens * topK);
    for (let choice = 0; choice < routing.slots.length; choice++) {
      const place = next[routing.slots[choice]]++;
      const at = (choice % topK) * tokens + Math.floor(choice / topK);
      rows[place] = Math.floor(choice / topK);
      places[at] = place;
      gates[at] = routing.gates[choice];
    }
    const used = Array.from(counts.keys()).filter((slot) => !skipUnused || counts[slot] > 0);
    const sizes = BigInt64Array.from(used, (slot) => BigInt(counts[slot]));
    const results = await execute(used, {
      normed: tensor("float32", normed, [tokens, hidden]),
      residual: tensor("float32", residual, [tokens, hidden]),
      rows: tensor("int32", rows, [rows.length]),
      sizes: tensor("int64", sizes, [used.length]),
      places: tensor("int32", places, [topK, tokens]),
      gates: tensor("float32", gates, [topK, tokens, 1]),
    });
    return results.result.data;
  };
  return { inputs: run(true, inputs), initializers: run(false, (_, feeds) => whole.run(feeds)) };
}

/** Softmax, top-k and the tokens of every expert inside the graph; results scattered onto the residual. */
function inGraphForm(hidden, width, slots, topK) {
  const graph = new GraphBuilder("routed");
  const normed = graph.input("normed", ["N", hidden]);
  let result = graph.input("residual", ["N", hidden]);
  const probabilities = graph.node("Softmax", [graph.input("logits", ["N", slots])], {
    attributes: { axis: -1 },
  });
  graph.nodes("TopK", [probabilities, graph.int64([topK])], ["best", "chosen"], { attributes: { axis: -1 } });
  const sum = graph.node("ReduceSum", ["best", graph.int64([1])], { attributes: { keepdims: 1 } });
  const zeros = graph.node("Mul", [probabilities, graph.float32(0)]);
  const values = [zeros, "chosen", graph.node("Div", ["best", sum])];
  const scattered = graph.node("ScatterElements", values, { attributes: { axis: 1 } });
  const gates = graph.node("Transpose", [scattered], { attributes: { perm: [1, 0] } });
  const take = (from, rows) => graph.node("Gather", [from, rows], { attributes: { axis: 0 } });
  for (let slot = 0; slot < slots; slot++) {
    const gate = take(gates, graph.int64([slot], []));
    const used = graph.node("NonZero", [graph.node("Greater", [gate, graph.float32(0)])]);
    const rows = graph.node("Squeeze", [used, graph.int64([0])]);
    const y = mlpInput(graph, take(normed, rows), hidden, width, slot);
    const weight = graph.node("Unsqueeze", [take(gate, rows), graph.int64([1])]);
    const target = graph.node("Unsqueeze", [rows, graph.int64([1])]);
    result = graph.node("ScatterND", [result, target, graph.node("Mul", [y, weight])], {
      attributes: { reduction: "add" },
    });
  }
  graph.nodes("Identity", [result], ["result"]);
  graph.output("result", ["N", hidden]);
  return graph.build();
}

/** A single expert. */
function singleForm(hidden, width) {
  const graph = new GraphBuilder("expert");
  const y = mlpInput(graph, graph.input("x", ["N", hidden]), hidden, width, "");
  graph.nodes("Identity", [y], ["y"]);
  graph.output("y", ["N", hidden]);
  return graph.build();
}

function mlpInput(graph, x, hidden, width, slot) {
  const shape = shapeOf(hidden, width);
  return mlp(graph, inputWeights(graph, `${slot}`), x, shape);
}

function shapeOf(hidden, width) {
  return { hidden, width, activation: { kind: "silu" }, biases: [] };
}

/** ONNX Runtime's own MoE operator, which wants the rows of gate and up interleaved. */
function operatorForm(hidden, width, slots, topK) {
  const graph = new GraphBuilder("operator");
  const normed = graph.input("normed", ["N", hidden]);
  const logits = graph.input("logits", ["N", slots]);
  const first = graph.input("first", [slots, 2 * width, hidden]);
  const y = graph.node("MoE", [normed, logits, first, "", graph.input("second", [slots, hidden, width])], {
    domain: "com.microsoft",
    attributes: {
      k: topK,
      activation_type: "swiglu",
      swiglu_fusion: 1,
      normalize_routing_weights: 1,
      activation_alpha: { float: 1 },
      activation_beta: { float: 0 },
    },
  });
  graph.nodes("Add", [graph.input("residual", ["N", hidden]), y], ["result"]);
  graph.output("result", ["N", hidden]);
  return graph.build();
}

function interleave({ hidden, width, experts }) {
  const first = new Float32Array(experts.length * 2 * width * hidden);
  const second = new Float32Array(experts.length * width * hidden);
  for (const [slot, { gate, up, down }] of experts.entries()) {
    for (let row = 0; row < width; row++) {
      const to = 2 * (slot * width + row) * hidden;
      first.set(gate.subarray(row * hidden, (row + 1) * hidden), to);
      first.set(up.subarray(row * hidden, (row + 1) * hidden), to + hidden);
    }
    second.set(down, slot * width * hidden);
  }
  return {
    first: tensor("float32", first, [experts.length, 2 * width, hidden]),
    second: tensor("float32", second, [experts.length, hidden, width]),
  };
}
