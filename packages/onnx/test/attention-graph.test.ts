import { type AttentionShape, attentionGraph, operatorHeads, pastNames } from "@coppice/onnx";
import { Tensor } from "onnxruntime-node";
import { describe, expect, test } from "vitest";
import { type Matrix, product, slowAttention, type Weights } from "./formulas.js";
import { expectClose, feedsOf, int32, random, randomRow, run, tensor } from "./run-graph.js";

const rms = { kind: "rms", epsilon: 1e-5, bias: false } as const;
const layerNorm = { kind: "layer", epsilon: 1e-5, bias: true } as const;
const perHead = { ...rms, epsilon: 1e-6, over: "head" } as const;

const base = {
  kind: "gqa",
  hidden: 24,
  heads: 4,
  kvHeads: 2,
  headDim: 16,
  scale: 0.3,
  attentionNorm: rms,
  feedForwardNorm: { ...rms, epsilon: 1e-6 },
  inputBias: false,
  outputBias: false,
  rotaryDimensions: 16,
  rotation: "operator",
  normAfterRotary: false,
  temperature: false,
  sinks: false,
  router: { bias: false },
} as const satisfies AttentionShape;

const { router: _, ...withoutRouter } = base;

const latent = {
  kind: "mla",
  hidden: 24,
  heads: 3,
  scale: 0.3,
  nopeDim: 7,
  rotaryDimensions: 4,
  valueDim: 5,
  rank: 6,
  attentionNorm: rms,
  feedForwardNorm: rms,
  kvNorm: rms,
  outputBias: false,
  queryBias: false,
  kvDownBias: false,
  kvUpBias: false,
} as const satisfies AttentionShape;

const variants: Record<string, AttentionShape> = {
  plain: base,
  "query and key norm": { ...base, queryNorm: perHead, keyNorm: { ...perHead, epsilon: 1e-5 } },
  biases: { ...base, inputBias: true, outputBias: true, router: { bias: true } },
  "window of 3": { ...base, window: 3 },
  "half of each head rotates": { ...base, headDim: 32 },
  "no router": withoutRouter,
  "norms over projections, then a clip": {
    ...base,
    queryNorm: { ...rms, over: "projection" },
    keyNorm: { ...rms, over: "projection" },
    clip: 0.8,
  },
  "clip alone": { ...base, clip: 0.8 },
  "sinks and a window": { ...base, sinks: true, window: 4 },
  "layer norms": { ...base, attentionNorm: layerNorm, feedForwardNorm: layerNorm },
  "root-mean-square norms with biases": {
    ...base,
    attentionNorm: { ...rms, bias: true },
    feedForwardNorm: { ...rms, bias: true },
  },
  "clip, rotation of some of a head, norm": {
    ...base,
    headDim: 12,
    rotaryDimensions: 4,
    rotation: "rows",
    normAfterRotary: true,
    clip: 1,
    queryNorm: { ...layerNorm, over: "head" },
    keyNorm: perHead,
  },
  "layer norms of heads before the rotation": {
    ...base,
    headDim: 10,
    rotaryDimensions: 10,
    rotation: "rows",
    queryNorm: { ...layerNorm, over: "projection" },
    keyNorm: { ...layerNorm, over: "head" },
  },
  "no rotation, warmer queries": { ...base, rotaryDimensions: 0, rotation: "rows", temperature: true },
  "no rotation, heads of odd size": { ...base, headDim: 5, rotaryDimensions: 0, rotation: "rows" },
  "latent attention": latent,
  "latent attention with queries of low rank, biases and a window": {
    ...latent,
    window: 3,
    queryDown: { rank: 5, bias: true },
    queryNorm: rms,
    queryBias: true,
    kvDownBias: true,
    kvUpBias: true,
    outputBias: true,
    router: { bias: false },
  },
  "latent attention with wide values": { ...latent, valueDim: 20, nopeDim: 4 },
};

const lengths = [5, 1, 7];
const tokens = 13;
const longest = 7;
const starts = [0, 5, 6];
const temperature = (position: number) => 1 + 0.4 * Math.floor(position / 2);

function weightsOf(shape: AttentionShape): Weights {
  const { hidden, heads } = shape;
  const maps: Record<string, [number, number, boolean]> = {};
  const norms: Record<string, [number, boolean]> = {
    attentionNorm: [hidden, shape.attentionNorm.bias],
    feedForwardNorm: [hidden, shape.feedForwardNorm.bias],
  };
  if (shape.kind === "gqa") {
    const { headDim, kvHeads, queryNorm, keyNorm } = shape;
    maps.qkv = [(heads + 2 * kvHeads) * headDim, hidden, shape.inputBias];
    maps.output = [hidden, heads * headDim, shape.outputBias];
    const size = (over: "head" | "projection", count: number) => headDim * (over === "head" ? 1 : count);
    if (queryNorm) norms.queryNorm = [size(queryNorm.over, heads), queryNorm.bias];
    if (keyNorm) norms.keyNorm = [size(keyNorm.over, kvHeads), keyNorm.bias];
  } else {
    const { queryDown, nopeDim, rotaryDimensions, valueDim, rank } = shape;
    if (queryDown) maps.queryDown = [queryDown.rank, hidden, queryDown.bias];
    if (shape.queryNorm) norms.queryNorm = [queryDown?.rank ?? hidden, false];
    maps.query = [heads * (nopeDim + rotaryDimensions), queryDown?.rank ?? hidden, shape.queryBias];
    maps.kvDown = [rank + rotaryDimensions, hidden, shape.kvDownBias];
    norms.kvNorm = [rank, false];
    maps.kvUp = [heads * (nopeDim + valueDim), rank, shape.kvUpBias];
    maps.output = [hidden, heads * valueDim, shape.outputBias];
  }
  if (shape.router) maps.router = [6, hidden, shape.router.bias];
  return {
    ...Object.fromEntries(
      Object.entries(maps).flatMap(([name, [outputs, inputs, bias]]) => [
        [name, random(outputs, inputs, 0.3)],
        ...(bias ? [[`${name}Bias`, randomRow(outputs)]] : []),
      ]),
    ),
    ...Object.fromEntries(
      Object.entries(norms).flatMap(([name, [size, bias]]) => [
        [name, randomRow(size)],
        ...(bias ? [[`${name}Bias`, randomRow(size)]] : []),
      ]),
    ),
    ...(shape.kind === "gqa" && shape.sinks && { sinks: randomRow(heads) }),
  };
}

/** Tables of 16 positions, and what says where the packed rows are. */
function placeFeeds(shape: AttentionShape): Record<string, Tensor> {
  const half = shape.rotaryDimensions / 2;
  const table = (turn: (angle: number) => number) =>
    Array.from({ length: 16 }, (_, position) =>
      Array.from({ length: half }, (_, i) => turn(position * 100 ** (-i / half))),
    );
  const row = (s: number, i: number) => (starts[s] as number) + Math.min(i, (lengths[s] as number) - 1);
  const positions = lengths.flatMap((length) => Array.from({ length }, (_, i) => i));
  return {
    ...(half > 0 && { cos: tensor(table(Math.cos)), sin: tensor(table(Math.sin)) }),
    positions: int32(positions),
    temperature: tensor(positions.map((position) => [temperature(position)])),
    pad: int32(
      lengths.flatMap((_, s) => Array.from({ length: longest }, (_, i) => row(s, i))),
      [lengths.length, longest],
    ),
    unpad: int32(unpad),
    lengths: int32(lengths.map((length) => length - 1)),
    total: int32([longest], []),
  };
}

const bools = (values: readonly boolean[], shape: readonly number[]) =>
  new Tensor("bool", Uint8Array.from(values, Number), shape);
const queries = bools(
  lengths.flatMap((length) => Array.from({ length: longest }, (_, i) => i < length)),
  [lengths.length, 1, longest, 1],
);

/** What tokens receive, without what stands behind the last of a sequence. */
function expectReceived(found: Tensor | undefined, expected: readonly number[]): void {
  const values = found?.data as Float32Array;
  expect(found?.dims).toEqual([lengths.length, longest]);
  const real = lengths.flatMap((length, s) => [...values.subarray(s * longest, s * longest + length)]);
  expectClose(tensor([real]), [expected]);
}

const unpad = lengths.flatMap((length, s) => Array.from({ length }, (_, i) => s * longest + i));
const packed = { cache: false, select: false, masked: false };

describe("the attention graph", () => {
  for (const [name, shape] of Object.entries(variants)) {
    test(`${name}: packed sequences of different lengths, all rows and some`, async () => {
      const weights = weightsOf(shape);
      const hidden = random(tokens, shape.hidden);
      const feeds = { hidden: tensor(hidden), ...placeFeeds(shape), ...feedsOf(weights) };
      const around = { lengths, temperature, chunk: longest };
      const expected = slowAttention(shape, weights, hidden, around);

      const found = await run(attentionGraph(shape, packed), feeds);
      expectClose(found.residual, expected.residual);
      expectClose(found.normed, expected.normed);
      if (shape.router) {
        const bias = weights.routerBias as number[] | undefined;
        expectClose(found.logits, product(expected.normed, weights.router as Matrix, bias), 1e-4);
      } else expect(found.logits).toBeUndefined();

      const summed = await run(attentionGraph(shape, { ...packed, received: true }), { ...feeds, queries });
      expectReceived(summed.received, expected.received);
      expectClose(summed.residual, expected.residual);

      const rows = [12, 3];
      const some = await run(attentionGraph(shape, { ...packed, select: true }), {
        ...feeds,
        unpad: int32(rows.map((row) => unpad[row] as number)),
        select: int32(rows),
      });
      const picked = (all: Matrix) => rows.map((row) => all[row] as number[]);
      expectClose(some.residual, picked(expected.residual));
      expectClose(some.normed, picked(expected.normed));
    });
  }

  test.each(["plain", "sinks and a window", "latent attention"])(
    "%s: a mask between chunks",
    async (name) => {
      const shape = variants[name] as AttentionShape;
      const weights = weightsOf(shape);
      const hidden = random(tokens, shape.hidden);
      const chunk = 3;
      const apart = (i: number, j: number) => Math.floor(i / chunk) !== Math.floor(j / chunk);
      const mask = Array.from({ length: lengths.length * longest }, (_, row) =>
        Array.from({ length: longest }, (_, j) => (apart(row % longest, j) ? Number.NEGATIVE_INFINITY : 0)),
      );
      const found = await run(attentionGraph(shape, { ...packed, masked: true, received: true }), {
        queries,
        hidden: tensor(hidden),
        ...placeFeeds(shape),
        ...feedsOf(weights),
        mask: tensor(mask, [lengths.length, 1, longest, longest]),
      });
      const around = { lengths, temperature, chunk };
      const expected = slowAttention(shape, weights, hidden, around);
      expectClose(found.residual, expected.residual);
      expectReceived(found.received, expected.received);
    },
  );

  const behind = ["plain", "no rotation, heads of odd size", "latent attention", "sinks and a window"];
  const forms = (["operator", "step"] as const).flatMap((by) =>
    behind.flatMap((name) => [1, 2].map((groups) => ({ name, by, groups }))),
  );
  test.each(forms)("$name: tokens behind a past in $groups groups, by $by", async ({ name, by, groups }) => {
    const shape = variants[name] as AttentionShape;
    const weights = weightsOf(shape);
    const hidden = random(longest, shape.hidden);
    const { kvHeads, size } = operatorHeads(shape);
    const share = shape.heads / kvHeads;
    const around = { lengths: [longest], temperature, chunk: longest };
    const expected = slowAttention(shape, weights, hidden, around);
    const received = new Array<number>(longest).fill(0);
    // The last KV head first, so that their order is not that of the model.
    const order = Array.from({ length: kvHeads }, (_, head) => (groups === 1 ? head : kvHeads - 1 - head));
    const heads = groups === 1 ? [order] : [order.slice(0, 1), order.slice(1)];
    const past = { by, groups: heads.map((of) => ({ kvHeads: of.length, masked: true })) };
    const first = attentionGraph(shape, { ...packed, cache: true, received: true });
    const graph = attentionGraph(shape, { ...packed, cache: true, past, received: true });
    const places = 8;
    const arrays = heads.map((of) =>
      [0, 1].map(() => new Float32Array(of.length * places * size).fill(by === "step" ? 5 : 0)),
    );
    const window = shape.window ?? longest;
    let done = 0;
    for (const count of by === "step" ? [2, 1, 1, 1, 1, 1] : [2, 1, 3, 1]) {
      // Behind a past, places count from the last one down, and from the first one where the operator looks there only.
      const placeOf = (position: number) => (by === "step" ? places - 1 - position : position);
      const before = by === "step" ? places : done;
      const columns = before + count;
      const feeds: Record<string, Tensor> = {
        ...placeFeeds(shape),
        ...feedsOf(weights),
        hidden: tensor(hidden.slice(done, done + count)),
        positions: int32(Array.from({ length: count }, (_, i) => done + i)),
        temperature: tensor(Array.from({ length: count }, (_, i) => [temperature(done + i)])),
        pad: int32([...Array(count).keys()], [1, count]),
        unpad: int32([...Array(count).keys()]),
        queries: bools(Array(count).fill(true), [1, 1, count, 1]),
        turns: new Tensor(
          "int64",
          BigInt64Array.from({ length: count }, (_, i) => BigInt(done + i)),
          [count, 1],
        ),
        ...(done === 0 && { lengths: int32([count - 1]), total: int32([count], []) }),
      };
      for (const [g, of] of done > 0 ? heads.entries() : []) {
        const seen = (i: number, j: number) => j <= i && j > i - window;
        const mask = Array.from({ length: share * of.length * count }, (_, row) => {
          const query = done + (row % count);
          const values = new Array<number>(columns).fill(Number.NEGATIVE_INFINITY);
          for (let j = 0; j < done + count; j++) {
            if (seen(query, j)) values[j < done ? placeOf(j) : before + j - done] = 0;
          }
          return values;
        });
        const [key, value] = arrays[g] as [Float32Array, Float32Array];
        const dims = [1, of.length, places, size];
        feeds[pastNames.key(g)] = new Tensor("float32", key, dims);
        feeds[pastNames.value(g)] = new Tensor("float32", value, dims);
        const rows = by === "step" ? [of.length, share] : [of.length * share, count];
        feeds[pastNames.mask(g)] = tensor(mask, [1, ...rows, columns]);
        if (groups > 1) feeds[pastNames.heads(g)] = int32(of);
        if (by === "operator") {
          feeds[pastNames.lengths(g)] = int32([columns - 1]);
          feeds[pastNames.total(g)] = int32([columns], []);
        } else {
          const sizes = [before, count, ...(shape.kind === "gqa" && shape.sinks ? [1] : [])];
          feeds[pastNames.sizes(g)] = new Tensor("int64", BigInt64Array.from(sizes, BigInt), [sizes.length]);
        }
      }
      if (done > 0 && groups > 1) feeds.order = int32(order.map((_, head) => order.indexOf(head)));
      const found = await run(done === 0 ? first : graph, feeds);
      expectClose(found.residual, expected.residual.slice(done, done + count));
      if (done === 0) {
        for (let i = 0; i < count; i++) received[i] = found.received?.data[i] as number;
      }
      for (const [g, of] of heads.entries()) {
        const shares = found[pastNames.received(g)]?.data as Float32Array | undefined;
        for (let j = 0; shares && j < done + count; j++) {
          const column = j < done ? placeOf(j) : before + j - done;
          received[j] = (received[j] as number) + (shares[column] as number);
        }
        for (const [part, output] of ["newKey", "newValue"].entries()) {
          const rows = found[output]?.data as Float32Array;
          for (const [h, head] of of.entries()) {
            for (let i = 0; i < count; i++) {
              const from = (head * count + i) * size;
              arrays[g]?.[part]?.set(
                rows.subarray(from, from + size),
                (h * places + placeOf(done + i)) * size,
              );
            }
          }
        }
      }
      done += count;
    }
    for (const [i, share] of expected.received.entries()) expect(received[i]).toBeCloseTo(share, 5);
  });
});
