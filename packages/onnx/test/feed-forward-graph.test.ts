import { type ActivationSpec, routeTokens } from "@coppice/core";
import { denseGraph, expertGraph, type MlpShape, moeGraph } from "@coppice/onnx";
import { Tensor } from "onnxruntime-node";
import { describe, expect, test } from "vitest";
import { type Matrix, type MlpMatrices, product, slowMlp, slowUnits } from "./formulas.js";
import { expectClose, feedsOf, int32, int64, random, randomRow, run, tensor } from "./run-graph.js";

const [hidden, width, tokens] = [8, 12, 7];
const activations: Record<string, ActivationSpec> = {
  silu: { kind: "silu" },
  "clamped-swiglu": { kind: "clamped-swiglu", limit: 1.5, alpha: 1.702 },
  relu2: { kind: "relu2" },
};

function shapeOf(activation: ActivationSpec, biased: boolean): MlpShape {
  const gate = activation.kind !== "relu2" ? (["gateBias"] as const) : [];
  return { hidden, width, activation, biases: biased ? [...gate, "upBias", "downBias"] : [] };
}

function weightsOf({ activation, biases }: MlpShape): MlpMatrices {
  const sizes = { gateBias: width, upBias: width, downBias: hidden } as Record<string, number>;
  return {
    ...(activation.kind !== "relu2" && { gate: random(width, hidden) }),
    up: random(width, hidden),
    down: random(hidden, width, 0.5),
    ...Object.fromEntries(biases.map((part) => [part, randomRow(sizes[part] as number)])),
  };
}

const shapes = Object.entries(activations).flatMap(([name, activation]) =>
  [false, true].map(
    (biased) => [`${name}${biased ? " with biases" : ""}`, shapeOf(activation, biased)] as const,
  ),
);

describe("the dense graph", () => {
  test.each(shapes)("%s: residual plus the MLP", async (_, shape) => {
    const weights = weightsOf(shape);
    const [x, residual] = [random(tokens, hidden), random(tokens, hidden)];
    const feeds = { normed: tensor(x), residual: tensor(residual), ...feedsOf(weights) };
    const y = slowMlp(x, shape.activation, weights);
    const expected = (factor: (t: number) => number) =>
      residual.map((row, t) => row.map((value, i) => value + factor(t) * (y[t]?.[i] as number)));
    const { result } = await run(denseGraph(shape), feeds);
    expectClose(
      result,
      expected(() => 1),
      1e-4,
    );

    const projection = random(1, hidden);
    const gates = product(x, projection).map(([z]) => 1 / (1 + Math.exp(-(z as number))));
    const gated = await run(denseGraph(shape, { gated: true, residualScale: 0.25 }), {
      ...feeds,
      projection: tensor(projection),
    });
    expectClose(
      gated.result,
      expected((t) => 0.25 * (gates[t] as number)),
      1e-4,
    );
  });
});

describe("the graph of one expert", () => {
  test.each(shapes)("%s: hidden units and outputs, of inputs that may be scaled", async (_, shape) => {
    const weights = weightsOf(shape);
    const x = random(tokens, hidden);
    const gates = randomRow(tokens);
    const feeds = { rows: tensor(x), ...feedsOf(weights) };
    const { output, units } = await run(expertGraph(shape, { outputs: ["units", "output"] }), feeds);
    expectClose(output, slowMlp(x, shape.activation, weights), 1e-4);
    expectClose(units, slowUnits(x, shape.activation, weights), 1e-4);

    const scaled = x.map((row, t) => row.map((value) => value * (gates[t] as number)));
    for (const [name, slow] of [
      ["units", slowUnits],
      ["output", slowMlp],
    ] as const) {
      const found = await run(expertGraph(shape, { outputs: [name], scalesInput: true }), {
        ...feeds,
        gates: tensor(gates.map((gate) => [gate])),
      });
      expect(Object.keys(found)).toEqual([name]);
      expectClose(found[name], slow(scaled, shape.activation, weights), 1e-4);
    }
  });
});

describe("the experts' graph", () => {
  const [slots, topK] = [5, 2];
  const [x, residual] = [random(tokens, hidden), random(tokens, hidden)];
  // Slot 3 is chosen by nobody.
  const logits = random(tokens, slots, 2).map((row) => row.map((value, slot) => (slot === 3 ? -50 : value)));
  const routing = routeTokens(Float32Array.from(logits.flat()), tokens, {
    order: "softmax-topk",
    normalize: { power: 1 },
    topK,
    weight: undefined as never,
  });
  const choices = Array.from(routing.slots, (slot, choice) => ({
    slot,
    choice,
    token: Math.floor(choice / topK),
    gate: routing.gates[choice] as number,
  }));
  const sorted = choices.toSorted((a, b) => a.slot - b.slot || a.choice - b.choice);
  const places = new Array<number>(choices.length);
  const gates = new Array<number>(choices.length);
  for (const [place, { choice, token, gate }] of sorted.entries()) {
    const at = (choice % topK) * tokens + token;
    places[at] = place;
    gates[at] = gate;
  }
  const routed = {
    normed: tensor(x),
    residual: tensor(residual),
    rows: int32(sorted.map(({ token }) => token)),
    sizes: int64(Array.from({ length: slots }, (_, s) => sorted.filter(({ slot }) => slot === s).length)),
    places: int32(places, [topK, tokens]),
    gates: new Tensor("float32", Float32Array.from(gates), [topK, tokens, 1]),
  };

  /** Every token's residual and what its choices add, choice by choice. */
  function sums(added: (choice: (typeof choices)[number]) => readonly number[]): Matrix {
    const result = residual.map((row) => [...row]);
    for (const choice of choices) {
      const row = result[choice.token] as number[];
      for (const [i, value] of added(choice).entries()) row[i] = (row[i] as number) + value;
    }
    return result;
  }

  test.each(shapes)(
    "%s: the weighted sum of those that a token chose, empty slots do nothing",
    async (_, shape) => {
      const experts = Array.from({ length: slots }, () => weightsOf(shape));
      const feeds: Record<string, Tensor> = { ...routed };
      for (const [slot, weights] of experts.entries()) Object.assign(feeds, feedsOf(weights, `${slot}`));
      const options = { slots, topK, expertOutputs: true };
      const outputs = experts.map((weights) => slowMlp(x, shape.activation, weights));
      const output = ({ slot, token }: { slot: number; token: number }) => outputs[slot]?.[token] as number[];

      const found = await run(moeGraph(shape, { ...options, expertNorms: true }), feeds);
      expectClose(found.expertOutputs, sorted.map(output), 1e-4);
      expectClose(found.expertNorms, [sorted.map((choice) => Math.hypot(...output(choice)))], 1e-4);
      expectClose(
        found.result,
        sums((choice) => output(choice).map((value) => choice.gate * value)),
        1e-4,
      );

      const half = await run(moeGraph(shape, { ...options, residualScale: 0.5 }), feeds);
      expectClose(
        half.result,
        sums((choice) => output(choice).map((value) => 0.5 * choice.gate * value)),
        1e-4,
      );

      // Gate weights on the inputs instead, in the order of `rows`.
      const scaled = await run(moeGraph(shape, { ...options, scalesInput: true }), {
        ...feeds,
        gates: new Tensor(
          "float32",
          Float32Array.from(sorted, ({ gate }) => gate),
          [sorted.length, 1],
        ),
      });
      const ofScaled = ({ slot, token, gate }: (typeof choices)[number]) => {
        const input = (x[token] as number[]).map((value) => gate * value);
        return slowMlp([input], shape.activation, experts[slot] as MlpMatrices)[0] as number[];
      };
      expectClose(scaled.expertOutputs, sorted.map(ofScaled), 1e-4);
      expectClose(scaled.result, sums(ofScaled), 1e-4);
    },
  );

  test.each([false, true])("choices that do not run add nothing, inputs scaled: %s", async (scalesInput) => {
    const [, shape] = shapes[0] as (typeof shapes)[0];
    const experts = Array.from({ length: slots }, () => weightsOf(shape));
    // Every second token has its second choice left out.
    const runs = ({ choice, token }: (typeof choices)[number]) => choice % topK === 0 || token % 2 === 0;
    const running = sorted.filter(runs);
    const at = new Array<number>(choices.length).fill(running.length);
    for (const [place, { choice, token }] of running.entries()) at[(choice % topK) * tokens + token] = place;
    const feeds: Record<string, Tensor> = {
      ...routed,
      rows: int32(running.map(({ token }) => token)),
      sizes: int64(Array.from({ length: slots }, (_, s) => running.filter(({ slot }) => slot === s).length)),
      places: int32(at, [topK, tokens]),
      ...(scalesInput && { gates: tensor(running.map(({ gate }) => [gate])) }),
    };
    for (const [slot, weights] of experts.entries()) Object.assign(feeds, feedsOf(weights, `${slot}`));
    const outputOf = ({ slot, token, gate }: (typeof choices)[number]) => {
      const input = (x[token] as number[]).map((value) => (scalesInput ? gate : 1) * value);
      return slowMlp([input], shape.activation, experts[slot] as MlpMatrices)[0] as number[];
    };
    const options = { slots, topK, expertOutputs: true, expertNorms: true, skips: true } as const;
    const found = await run(moeGraph(shape, { ...options, ...(scalesInput && { scalesInput }) }), feeds);
    expectClose(found.expertOutputs, [...running.map(outputOf), new Array<number>(hidden).fill(0)], 1e-4);
    expectClose(found.expertNorms, [[...running.map((choice) => Math.hypot(...outputOf(choice))), 0]], 1e-4);
    const added = (choice: (typeof choices)[number]) =>
      outputOf(choice).map((value) => (runs(choice) ? (scalesInput ? 1 : choice.gate) * value : 0));
    expectClose(found.result, sums(added), 1e-4);
  });
});
