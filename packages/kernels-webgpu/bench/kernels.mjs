// Rates of the kernels on a GPU, against what the device can do: its copy bandwidth and, for products, each other.
// Usage: npm install webgpu && node packages/kernels-webgpu/bench/kernels.mjs [--size 4096] [--only matmul,experts,copy,decode,attention]
import { parseArgs } from "node:util";
import {
  attendPrefill,
  attendSplit,
  attentionTables,
  copyVectors,
  createMatrix,
  disposeMatrix,
  expertMatmul,
  matmul,
  sortChoices,
  sortedBytes,
  splitBytes,
} from "../dist/index.js";
import { median, openDevice } from "./open-device.mjs";

const { values } = parseArgs({
  options: {
    size: { type: "string", default: "4096" },
    only: { type: "string", default: "matmul,experts,copy,decode,attention" },
  },
});
const size = Number(values.size);
const wanted = new Set(values.only.split(","));
const { gpu, name } = await openDevice();
const units = gpu.matrixUnits;
console.log(
  `${name}, Node ${process.version}, ${units ? `matrix units ${units.m}x${units.n}x${units.k}` : "no matrix units"}`,
);
console.log(`| what | ms | rate |\n|---|---|---|`);
const row = (what, ms, rate) => console.log(`| ${what} | ${ms.toFixed(3)} | ${rate} |`);
const teraflops = (operations, ms) => `${(operations / ms / 1e9).toFixed(1)} TFLOP/s`;
const bandwidth = (bytes, ms) => `${(bytes / ms / 1e6).toFixed(0)} GB/s`;
const floats = (count, label) => gpu.buffer(4 * count, label);
const formats = {
  f32: { kind: "f32" },
  bf16: { kind: "bf16" },
  q4: { kind: "quantized", bits: 4, groupSize: 32, zeros: false },
};

if (wanted.has("copy")) {
  const bytes = Math.min(2 ** 30, gpu.maxBindingBytes);
  const [x, y] = [gpu.buffer(bytes, "copy"), gpu.buffer(bytes, "copy")];
  const ms = await median(gpu, () => copyVectors(gpu, x, y, bytes / 16));
  row(`copy by a kernel, ${bytes / 2 ** 20} MiB`, ms, `${bandwidth(2 * bytes, ms)} read and written`);
  for (const one of [x, y]) one.dispose();
}

if (wanted.has("matmul")) {
  const [x, y] = [floats(size * size, "x"), floats(size * size, "y")];
  for (const [format, half] of [
    ["f32", false],
    ...(units ? [["bf16", true]] : []),
    ["bf16", false],
    ["q4", false],
  ]) {
    const weight = createMatrix(
      gpu,
      { format: formats[format], blocks: size, rows: 1, columns: size },
      "weights",
    );
    const ms = await median(gpu, () => matmul(gpu, { x, rows: size, weight, y, half }));
    row(
      `matmul ${size}³, weights ${format}, ${half ? "f16 on matrix units" : "f32"}`,
      ms,
      teraflops(2 * size ** 3, ms),
    );
    disposeMatrix(weight);
  }
  for (const one of [x, y]) one.dispose();
}

if (wanted.has("experts")) {
  const [tokens, hidden, width, experts, topK] = [512, 2048, 1024, 32, 4];
  const count = tokens * topK;
  const bytes = sortedBytes(count, experts);
  const slots = gpu.upload(
    Int32Array.from(
      { length: count },
      (_, i) => (((i % topK) * 8 + ((Math.floor(i / topK) * 7) % 8)) * 5) % experts,
    ),
    "slots",
  );
  const own = {
    tokens,
    topK,
    slots,
    gates: floats(count, "gates"),
    places: gpu.upload(
      Uint32Array.from({ length: experts }, (_, i) => i),
      "places",
    ),
    slotCount: experts,
  };
  const [order, tiles, counts] = [
    gpu.buffer(bytes.order, "order"),
    gpu.buffer(bytes.tiles, "tiles"),
    floats(1, "counts"),
  ];
  const [x, units, y] = [
    floats(tokens * hidden, "x"),
    floats(count * width, "units"),
    floats(count * hidden, "y"),
  ];
  for (const [format, half] of [
    ["f32", false],
    ...(units ? [["bf16", true]] : []),
    ["bf16", false],
    ["q4", false],
  ]) {
    const up = createMatrix(
      gpu,
      { format: formats[format], blocks: experts, rows: 2 * width, columns: hidden },
      "up",
    );
    const down = createMatrix(
      gpu,
      { format: formats[format], blocks: experts, rows: hidden, columns: width },
      "down",
    );
    const ms = await median(gpu, () => {
      const sorted = sortChoices(gpu, own, { order, tiles }, counts);
      const choices = { ...own, sorted };
      const activation = { kind: "silu" };
      expertMatmul(gpu, {
        choices,
        x,
        perChoice: false,
        stacks: [{ matrix: up }],
        activation,
        y: units,
        half,
      });
      expertMatmul(gpu, { choices, x: units, perChoice: true, stacks: [{ matrix: down }], y, half });
    });
    const what = `experts n=${tokens} hidden ${hidden} width ${width} ${experts} experts top-${topK}`;
    row(
      `${what}, weights ${format}, ${half ? "f16 on matrix units" : "f32"}`,
      ms,
      teraflops(count * 6 * hidden * width, ms),
    );
    for (const one of [up, down]) disposeMatrix(one);
  }
  for (const one of [slots, own.gates, own.places, order, tiles, counts, x, units, y]) one.dispose();
}

if (wanted.has("decode")) {
  // Large enough that the weights do not stay in a cache, and several matrices in turn.
  const [columns, rows] = [8192, 16384];
  const [x, y] = [floats(columns, "x"), floats(rows, "y")];
  for (const [format, kind] of Object.entries(formats)) {
    const matrices = Array.from({ length: 4 }, () =>
      createMatrix(gpu, { format: kind, blocks: rows, rows: 1, columns }, "weights"),
    );
    const bytes = matrices.reduce(
      (sum, { parts }) =>
        sum + parts.reduce((all, { codes, scales }) => all + codes.bytes + (scales?.bytes ?? 0), 0),
      0,
    );
    const ms = await median(gpu, () => {
      for (const weight of matrices) matmul(gpu, { x, rows: 1, weight, y });
    });
    row(
      `one token, four matrices ${rows} x ${columns}, weights ${format}`,
      ms,
      `${bandwidth(bytes, ms)} of weights`,
    );
    for (const one of matrices) disposeMatrix(one);
  }
  for (const one of [x, y]) one.dispose();
}

if (wanted.has("attention")) {
  for (const [heads, kvHeads, dim] of [
    [32, 8, 128],
    [8, 2, 64],
  ]) {
    const shape = { heads, kvHeads, keyDim: dim, valueDim: dim, scale: dim ** -0.5, window: 0, chunk: 0 };
    const [keys, cached] = [floats(size * kvHeads * dim, "keys"), floats(size * kvHeads * dim, "values")];
    for (const tokens of [size, 1]) {
      const tables = attentionTables([{ row: 0, tokens, past: size - tokens, keyRow: 0 }]);
      const queries = floats(tokens * heads * dim, "queries");
      const y = floats(tokens * heads * dim, "y");
      const tiles = gpu.upload(tables.tiles, "tiles");
      const rows = gpu.upload(tables.rows, "rows");
      const partial = gpu.buffer(splitBytes(shape, tokens === 1 ? 1 : 0, tables.longest), "partial");
      const call = {
        shape,
        queries,
        keys,
        values: cached,
        tokens,
        tiles,
        tileCount: tables.tiles.length / 4,
        queryTile: tables.queryTile,
        rows,
        longest: tables.longest,
        y,
      };
      if (tokens === 1) {
        const ms = await median(gpu, () => attendSplit(gpu, call, partial));
        row(
          `attention of one token over ${size}, ${heads}/${kvHeads} heads of ${dim}`,
          ms,
          bandwidth(8 * size * kvHeads * dim, ms),
        );
      } else {
        const dense = await median(gpu, () => attendPrefill(gpu, call));
        // Half of the products lie beyond the diagonal.
        row(
          `causal attention of ${size} tokens, ${heads}/${kvHeads} heads of ${dim}`,
          dense,
          teraflops(2 * size ** 2 * heads * dim, dense),
        );
        const sinks = 64;
        const pairs = Math.round(size * (1 - Math.sqrt(0.75)));
        // As plans have it whose heads differ: some see much, the others the sinks and the latest.
        const [short, wide] = [128, Math.max(1, kvHeads / 4)];
        const long = (kvHeads * (size / 4) - (kvHeads - wide) * short) / wide;
        for (const [what, spanOf] of [
          [`${sinks} sinks and a window: a quarter of the context`, () => size / 4],
          [
            `a quarter of the context, of ${wide} in ${kvHeads} KV heads ${long}, else ${short}`,
            (head) => (head < wide ? long : short),
          ],
          [`${sinks} sinks and a window: a quarter of the pairs of tokens`, () => pairs],
        ]) {
          const entries = Array.from({ length: kvHeads }, (_, head) => [
            sinks,
            spanOf(head) - sinks,
            head,
            0,
          ]);
          const table = gpu.upload(Uint32Array.from(entries.flat()), "spans");
          const sight = { kind: "spans", table, first: 0, stride: kvHeads };
          const ms = await median(gpu, () => attendPrefill(gpu, { ...call, sight }));
          row(`the same, ${what}`, ms, `${(dense / ms).toFixed(2)} times as fast`);
          table.dispose();
        }
      }
      for (const one of [queries, y, tiles, rows, partial]) one.dispose();
    }
    for (const one of [keys, cached]) one.dispose();
  }
}
gpu.dispose();
gpu.device.destroy();
