import { headGraph } from "@coppice/onnx";
import { describe, expect, test } from "vitest";
import { normRow, product } from "./formulas.js";
import { expectClose, feedsOf, int64, random, randomRow, run, tensor } from "./run-graph.js";

describe("the head graph", () => {
  const [hidden, vocab, rows] = [8, 20, 5];
  const [x, head, norm] = [random(rows, hidden), random(vocab, hidden), randomRow(hidden)];
  const rms = { kind: "rms", epsilon: 1e-5, bias: false } as const;
  const feeds = { hidden: tensor(x), ...feedsOf({ norm, head }) };
  const shape = { hidden, vocab, norm: rms, bias: false };
  const normed = x.map((row) => normRow(row, rms, norm));

  test("gives logits", async () => {
    const found = await run(headGraph(shape, { score: false }), feeds);
    expectClose(found.logits, product(normed, head));
  });

  test("gives logits behind a layer norm, with a bias and a factor", async () => {
    const layer = { kind: "layer", epsilon: 1e-5, bias: true } as const;
    const [normBias, headBias] = [randomRow(hidden), randomRow(vocab)];
    const graph = headGraph({ ...shape, norm: layer, bias: true, logitScale: 0.3 }, { score: false });
    const found = await run(graph, { ...feeds, ...feedsOf({ normBias, headBias }) });
    const input = x.map((row) => normRow(row, layer, norm, normBias));
    const expected = product(input, head, headBias).map((row) => row.map((value) => 0.3 * value));
    expectClose(found.logits, expected);
  });

  test("scores picks and finds the most likely token, the lowest among equals", async () => {
    const doubled = [...head.slice(0, -1), head[4] as number[]];
    const picks = [0, 3, 4, 19, 4, 0, 2, 7];
    const found = await run(headGraph(shape, { score: true }), {
      ...feeds,
      head: tensor(doubled),
      picks: int64(picks, [4, 2]),
    });
    const twins = product(normed, doubled);
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
