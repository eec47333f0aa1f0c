import { Rng, routeTokens } from "@coppice/core";
import {
  type AttentionShape,
  attentionGraph,
  denseGraph,
  encodeModel,
  type Graph,
  headGraph,
  moeGraph,
} from "@coppice/onnx";
import { InferenceSession, Tensor } from "onnxruntime-node";
import { describe, expect, test } from "vitest";
import { type Matrix, mlp, normRows, product, slowAttention } from "./formulas.js";

const rng = Rng.fromSeed(3);

function random(rows: number, columns: number, scale = 1): Matrix {
  return Array.from({ length: rows }, () =>
    Array.from({ length: columns }, () => Math.fround(scale * rng.normal())),
  );
}

function tensor(matrix: Matrix, shape = [matrix.length, matrix[0]?.length ?? 0]): Tensor {
  return new Tensor("float32", Float32Array.from(matrix.flat()), shape);
}

const vector = (values: readonly number[]) =>
  new Tensor("float32", Float32Array.from(values), [values.length]);
const int32 = (values: readonly number[], shape = [values.length]) =>
  new Tensor("int32", Int32Array.from(values), shape);
const int64 = (values: readonly number[], shape = [values.length]) =>
  new Tensor("int64", BigInt64Array.from(values, BigInt), shape);

async function run(graph: Graph, feeds: Record<string, Tensor>): Promise<Record<string, Tensor>> {
  const session = await InferenceSession.create(encodeModel(graph), {
    intraOpNumThreads: 1,
    logSeverityLevel: 4,
  });
  try {
    return await session.run(feeds);
  } finally {
    await session.release();
  }
}

function expectClose(found: Tensor | undefined, expected: Matrix, tolerance = 1e-5): void {
  const values = found?.data as Float32Array;
  const flat = expected.flat();
  expect(values).toHaveLength(flat.length);
  let worst = 0;
  for (let i = 0; i < flat.length; i++)
    worst = Math.max(worst, Math.abs((values[i] as number) - (flat[i] as number)));
  expect(worst).toBeLessThan(tolerance);
}

describe("feed-forward graphs", () => {
  const [hidden, width, tokens] = [8, 12, 7];
  const expert = () => ({
    gate: random(width, hidden),
    up: random(width, hidden),
    down: random(hidden, width),
  });

  test("dense: residual plus the MLP", async () => {
    const { gate, up, down } = expert();
    const [x, residual] = [random(tokens, hidden), random(tokens, hidden)];
    const feeds = { normed: tensor(x), residual: tensor(residual), gate: tensor(gate), up: tensor(up) };
    const { result } = await run(denseGraph({ hidden, width }), { ...feeds, down: tensor(down) });
    const y = mlp(x, { gate, up, down });
    expectClose(
      result,
      residual.map((row, t) => row.map((value, i) => value + (y[t]?.[i] as number))),
      1e-4,
    );
  });

  test("experts: every token gets the weighted sum of those it chose, empty slots do nothing", async () => {
    const [slots, topK] = [5, 2];
    const experts = Array.from({ length: slots }, expert);
    const [x, residual] = [random(tokens, hidden), random(tokens, hidden)];
    // Slot 3 is chosen by nobody.
    const logits = random(tokens, slots, 2).map((row) =>
      row.map((value, slot) => (slot === 3 ? -50 : value)),
    );
    const router = { order: "softmax-topk", normalize: { power: 1 }, topK } as const;
    const routing = routeTokens(Float32Array.from(logits.flat()), tokens, {
      ...router,
      weight: undefined as never,
    });
    const choices = Array.from(routing.slots, (slot, choice) => ({ slot, choice }));
    const sorted = choices.toSorted((a, b) => a.slot - b.slot || a.choice - b.choice);
    const places = new Array<number>(choices.length);
    const gates = new Array<number>(choices.length);
    for (const [place, { choice }] of sorted.entries()) {
      const at = (choice % topK) * tokens + Math.floor(choice / topK);
      places[at] = place;
      gates[at] = routing.gates[choice] as number;
    }
    const feeds: Record<string, Tensor> = {
      normed: tensor(x),
      residual: tensor(residual),
      rows: int32(sorted.map(({ choice }) => Math.floor(choice / topK))),
      sizes: int64(experts.map((_, slot) => sorted.filter((entry) => entry.slot === slot).length)),
      places: int32(places, [topK, tokens]),
      gates: new Tensor("float32", Float32Array.from(gates), [topK, tokens, 1]),
    };
    for (const [slot, { gate, up, down }] of experts.entries()) {
      Object.assign(feeds, {
        [`gate${slot}`]: tensor(gate),
        [`up${slot}`]: tensor(up),
        [`down${slot}`]: tensor(down),
      });
    }
    const graph = moeGraph({ hidden, width }, { slots, topK, expertOutputs: true });
    const { result, expertOutputs } = await run(graph, feeds);
    const outputs = experts.map((weights) => mlp(x, weights));
    const expected = residual.map((row, t) => {
      const sum = [...row];
      for (let rank = 0; rank < topK; rank++) {
        const choice = t * topK + rank;
        const y = outputs[routing.slots[choice] as number]?.[t] as number[];
        for (let i = 0; i < hidden; i++)
          sum[i] = (sum[i] as number) + (routing.gates[choice] as number) * (y[i] as number);
      }
      return sum;
    });
    expectClose(result, expected, 1e-4);
    expectClose(
      expertOutputs,
      sorted.map(({ slot, choice }) => outputs[slot]?.[Math.floor(choice / topK)] as number[]),
      1e-4,
    );
  });
});

describe("the head graph", () => {
  const [hidden, vocab, rows] = [8, 20, 5];
  const [x, head, norm] = [random(rows, hidden), random(vocab, hidden), random(1, hidden)[0] as number[]];
  const feeds = { hidden: tensor(x), norm: vector(norm), head: tensor(head) };
  const shape = { hidden, vocab, epsilon: 1e-5 };
  const logits = product(normRows(x, norm, 1e-5), head);

  test("gives logits", async () => {
    const found = await run(headGraph(shape, { score: false }), feeds);
    expectClose(found.logits, logits);
  });

  test("scores picks and finds the most likely token, the lowest among equals", async () => {
    const doubled = [...head.slice(0, -1), head[4] as number[]];
    const picks = [0, 3, 4, 19, 4, 0, 2, 7];
    const found = await run(headGraph(shape, { score: true }), {
      ...feeds,
      head: tensor(doubled),
      picks: int64(picks, [4, 2]),
    });
    const twins = product(normRows(x, norm, 1e-5), doubled);
    const logProb = (row: number, token: number) => {
      const values = twins[row] as number[];
      return (values[token] as number) - Math.log(values.reduce((sum, value) => sum + Math.exp(value), 0));
    };
    expectClose(found.logProbs, [[logProb(0, 3), logProb(4, 19), logProb(4, 0), logProb(2, 7)]]);
    const best = twins.map((values) => values.indexOf(Math.max(...values)));
    expect(Array.from(found.argmax?.data as Int32Array)).toEqual(best);
  });

  test("equal logits: the lowest id", async () => {
    const same = {
      ...feeds,
      head: tensor(head.map(() => head[0] as number[])),
      picks: int64([0, 0], [1, 2]),
    };
    const { argmax } = await run(headGraph(shape, { score: true }), same);
    expect(Array.from(argmax?.data as Int32Array)).toEqual(new Array(rows).fill(0));
  });
});

describe("the attention graph", () => {
  const base: AttentionShape = {
    hidden: 24,
    heads: 4,
    kvHeads: 2,
    headDim: 16,
    scale: 0.3,
    rotaryDimensions: 16,
    inputBias: false,
    outputBias: false,
    attentionEpsilon: 1e-5,
    feedForwardEpsilon: 1e-6,
    router: true,
  };
  const variants: Record<string, AttentionShape> = {
    plain: base,
    "query and key norm": { ...base, queryEpsilon: 1e-6, keyEpsilon: 1e-5 },
    biases: { ...base, inputBias: true, outputBias: true },
    "window of 3": { ...base, window: 3 },
    "half of each head rotates": { ...base, headDim: 32, rotaryDimensions: 16 },
    "no router": { ...base, router: false },
  };
  const lengths = [5, 1, 7];
  const tokens = 13;

  function layer(shape: AttentionShape) {
    const { hidden, heads, kvHeads, headDim } = shape;
    const width = (heads + 2 * kvHeads) * headDim;
    const row = (size: number) => random(1, size)[0] as number[];
    return {
      attentionNorm: row(hidden),
      qkv: random(width, hidden, 0.3),
      ...(shape.inputBias && { qkvBias: row(width) }),
      ...(shape.queryEpsilon && { queryNorm: row(headDim) }),
      ...(shape.keyEpsilon && { keyNorm: row(headDim) }),
      output: random(hidden, heads * headDim, 0.3),
      ...(shape.outputBias && { outputBias: row(hidden) }),
      feedForwardNorm: row(hidden),
      ...(shape.router && { router: random(6, hidden) }),
    };
  }

  for (const [name, shape] of Object.entries(variants)) {
    test(`${name}: packed sequences of different lengths, all rows and some`, async () => {
      const weights = layer(shape);
      const hidden = random(tokens, shape.hidden);
      const feeds: Record<string, Tensor> = { hidden: tensor(hidden), ...rotary(shape) };
      for (const [key, value] of Object.entries(weights)) {
        feeds[key] = typeof value[0] === "number" ? vector(value as number[]) : tensor(value as Matrix);
      }
      const longest = Math.max(...lengths);
      const starts = lengths.map((_, s) => lengths.slice(0, s).reduce((a, b) => a + b, 0));
      const at = (s: number, i: number) => (starts[s] as number) + Math.min(i, (lengths[s] as number) - 1);
      const padded = lengths.flatMap((_, s) => Array.from({ length: longest }, (_, i) => at(s, i)));
      feeds.pad = int32(padded, [lengths.length, longest]);
      const unpad = lengths.flatMap((length, s) => Array.from({ length }, (_, i) => s * longest + i));
      feeds.unpad = int32(unpad);
      feeds.lengths = int32(lengths.map((length) => length - 1));
      feeds.total = int32([longest], []);
      const expected = slowAttention(shape, weights, hidden, lengths);

      const found = await run(attentionGraph(shape, { cache: false, select: false }), feeds);
      expectClose(found.residual, expected.residual);
      expectClose(found.normed, expected.normed);
      if (shape.router) expectClose(found.logits, product(expected.normed, weights.router as Matrix), 1e-4);
      else expect(found.logits).toBeUndefined();

      const rows = [12, 3];
      const some = await run(attentionGraph(shape, { cache: false, select: true }), {
        ...feeds,
        unpad: int32(rows.map((row) => unpad[row] as number)),
        select: int32(rows),
      });
      expectClose(
        some.residual,
        rows.map((row) => expected.residual[row] as number[]),
      );
      expectClose(
        some.normed,
        rows.map((row) => expected.normed[row] as number[]),
      );
    });
  }

  function rotary({ rotaryDimensions }: AttentionShape): Record<string, Tensor> {
    const half = rotaryDimensions / 2;
    const table = (turn: (angle: number) => number) =>
      Array.from({ length: 16 }, (_, position) =>
        Array.from({ length: half }, (_, i) => turn(position * 100 ** (-i / half))),
      );
    return { cos: tensor(table(Math.cos)), sin: tensor(table(Math.sin)) };
  }
});
