import type { LayerPlan, RouterSpec } from "@coppice/core";
import {
  checkAttention,
  checkDraw,
  checkElementwise,
  checkEmbedding,
  checkExperts,
  checkMatmul,
  checkMerge,
  checkNorm,
  checkPlannedRouting,
  checkRotary,
  checkRouting,
  checkTargets,
  checkUnfold,
  createMatrix,
  disposeMatrix,
  expertMatmul,
  type KernelCheck,
  sortChoices,
  sortedBytes,
  type WeightFormat,
  writeRows,
} from "@coppice/kernels-webgpu";

const formats: readonly WeightFormat[] = [
  { kind: "f32" },
  { kind: "bf16" },
  { kind: "f16" },
  { kind: "quantized", bits: 8, groupSize: 16, zeros: true },
  { kind: "quantized", bits: 4, groupSize: 32, zeros: true },
  { kind: "quantized", bits: 4, groupSize: 16, zeros: false },
  { kind: "quantized", bits: 2, groupSize: 16, zeros: true },
];
const f32: WeightFormat = { kind: "f32" };

const codes = { kind: "quantized", bits: 4, groupSize: 32, zeros: true } as const satisfies WeightFormat;

/**
 * One row by codes of few bits, several eights of columns at once: one group in a read, two of them, more than it. Where WGSL has the
 * instruction, four bytes are multiplied at once.
 */
export const packedCases: readonly KernelCheck[] = [
  checkMatmul({ format: codes, rows: 1, columns: 1056, outputs: 6, bias: true }),
  checkMatmul({
    format: { ...codes, groupSize: 16, zeros: false },
    rows: 1,
    columns: 1056,
    outputs: 6,
    bias: false,
  }),
  checkMatmul({
    format: { ...codes, bits: 2, groupSize: 64 },
    rows: 1,
    columns: 1088,
    outputs: 6,
    bias: false,
  }),
  checkMatmul({
    format: { ...codes, bits: 2, groupSize: 16 },
    rows: 1,
    columns: 1056,
    outputs: 6,
    bias: false,
  }),
];

const matmuls: KernelCheck[] = [
  ...formats.flatMap((format) => [
    checkMatmul({ format, rows: 1, columns: 96, outputs: 37, bias: true }),
    checkEmbedding(format, 11, 32),
  ]),
  // Rows that end within a vector, and rows that share a reading of the weights and do not fill it.
  checkMatmul({ format: f32, rows: 7, columns: 22, outputs: 65, bias: true }),
  checkMatmul({ format: { kind: "bf16" }, rows: 2, columns: 301, outputs: 9, bias: false }),
  checkMatmul({ format: f32, rows: 19, columns: 22, outputs: 65, bias: true }),
  checkMatmul({ format: codes, rows: 70, columns: 96, outputs: 37, bias: false }),
  ...packedCases,
  // As many columns, that do not fill readings of several eights.
  checkMatmul({ format: { ...codes, groupSize: 16 }, rows: 1, columns: 1040, outputs: 6, bias: false }),
  checkMatmul({ format: { ...codes, bits: 8 }, rows: 1, columns: 1040, outputs: 6, bias: false }),
  // On matrix units, where the device has them.
  checkMatmul({ format: { kind: "bf16" }, rows: 70, columns: 90, outputs: 67, bias: true, half: true }),
  checkMatmul({ format: f32, rows: 515, columns: 20, outputs: 520, bias: true }),
  checkEmbedding({ kind: "bf16" }, 7, 10),
];

const few = { topK: 3, experts: 5, columns: 64, outputs: 33 } as const;
const plain = { bias: false, scaled: false, perChoice: false } as const;
const silu = { kind: "silu" } as const;
const clamped = { kind: "clamped-swiglu", limit: 0.8, alpha: 1.7 } as const;

const experts: KernelCheck[] = [
  checkExperts({ ...few, ...plain, format: codes, tokens: 5, activation: silu, sorted: false }),
  checkExperts({ ...few, ...plain, format: codes, tokens: 20, activation: silu, sorted: true }),
  checkExperts({
    ...few,
    ...plain,
    format: codes,
    columns: 1024,
    outputs: 6,
    tokens: 2,
    activation: silu,
    sorted: false,
  }),
  checkExperts({ ...few, format: f32, columns: 10, tokens: 90, activation: silu, sorted: true, ...plain }),
  checkExperts({ ...few, ...plain, format: f32, tokens: 70, activation: silu, sorted: true, half: true }),
  ...[true, false].flatMap((sorted) => [
    checkExperts({
      ...few,
      format: f32,
      columns: 10,
      tokens: 9,
      bias: true,
      activation: clamped,
      scaled: true,
      perChoice: false,
      sorted,
    }),
    checkExperts({
      ...few,
      format: { kind: "bf16" },
      tokens: 9,
      bias: true,
      activation: undefined,
      scaled: false,
      perChoice: true,
      sorted,
    }),
  ]),
  checkExperts({ ...few, ...plain, format: f32, tokens: 9, activation: { kind: "relu2" }, sorted: false }),
  // Tiles for thousands of choices of one expert, one of which none fills.
  checkExperts({
    ...few,
    ...plain,
    format: { kind: "bf16" },
    outputs: 70,
    tokens: 200,
    activation: silu,
    sorted: true,
    tile: 128,
  }),
  checkExperts({
    ...few,
    format: f32,
    columns: 22,
    tokens: 90,
    bias: true,
    activation: undefined,
    scaled: false,
    perChoice: true,
    sorted: true,
    tile: 128,
  }),
  tilesAlike({ columns: 42, outputs: 70, tokens: 150, experts: 3, topK: 2 }),
];

/** A product must not depend on how many others are computed with it: tiles of all sizes give the same bits. */
function tilesAlike(shape: {
  columns: number;
  outputs: number;
  tokens: number;
  experts: number;
  topK: number;
}): KernelCheck {
  const { columns, outputs, tokens, experts, topK } = shape;
  const choices = tokens * topK;
  const values = (count: number, seed: number) =>
    Float32Array.from({ length: count }, (_, i) => Math.sin(seed + 1.7 * i));
  return {
    kernel: "matmul-grouped",
    key: "tiles alike",
    tolerance: 0,
    async run(gpu) {
      const matrix = createMatrix(
        gpu,
        { format: f32, blocks: experts, rows: 2 * outputs, columns },
        "experts",
      );
      writeRows(gpu, matrix, 0, values(experts * 2 * outputs * columns, 1));
      const upload = (data: Float32Array | Int32Array | Uint32Array) => gpu.upload(data, "tiles alike");
      const own = {
        tokens,
        topK,
        slots: upload(Int32Array.from({ length: choices }, (_, i) => (i * i) % experts)),
        gates: upload(values(choices, 2)),
        places: upload(Uint32Array.from({ length: experts }, (_, i) => i)),
        slotCount: experts,
      };
      const x = upload(values(tokens * columns, 3));
      const counts = gpu.buffer(4, "counts");
      const found: Float32Array[] = [];
      for (const tile of [16, 64, 128] as const) {
        const bytes = sortedBytes(choices, experts, tile);
        const [order, tiles] = [gpu.buffer(bytes.order, "order"), gpu.buffer(bytes.tiles, "tiles")];
        const y = gpu.buffer(4 * choices * outputs, "y");
        const sorted = sortChoices(gpu, own, { order, tiles }, counts, tile);
        expertMatmul(gpu, {
          choices: { ...own, sorted },
          x,
          perChoice: false,
          stacks: [{ matrix }],
          activation: silu,
          y,
        });
        found.push(await gpu.readFloats(y, choices * outputs));
        for (const buffer of [order, tiles, y]) buffer.dispose();
      }
      for (const buffer of [own.slots, own.gates, own.places, x, counts]) buffer.dispose();
      disposeMatrix(matrix);
      const [first, ...others] = found as [Float32Array, ...Float32Array[]];
      if (!first.every(Number.isFinite) || first.every((value) => value === 0)) return Number.NaN;
      return others.every((other) => other.every((value, i) => value === first[i])) ? 0 : 1;
    },
  };
}

const base = { topK: 3 } as const;
const normalize = { power: 1 } as const;
const mark: NonNullable<RouterSpec["correction"]> = {
  name: "correction",
  dtype: "F32",
  shape: [0],
  file: "",
  begin: 0,
  end: 0,
};
const kept = (slots: readonly number[], more: Partial<LayerPlan> = {}): LayerPlan => ({
  layer: 0,
  experts: slots,
  ...more,
});

/** Every order, and of each part every form, alone and with others. */
const routings: KernelCheck[] = [
  ...(["softmax-topk", "sigmoid-topk", "topk-softmax", "topk-sigmoid"] as const).flatMap((order, i) => [
    i % 2 === 0
      ? checkRouting({ ...base, order }, { experts: 9 })
      : checkRouting({ ...base, order, normalize, scale: 1.5 }, { experts: 130 }),
    i < 2
      ? checkRouting({ ...base, order, skip: { rule: "ratio", threshold: 0.5 } }, { experts: 9 })
      : checkRouting({ ...base, order, normalize, skip: { rule: "top-p", threshold: 0.6 } }, { experts: 9 }),
  ]),
  checkRouting({ topK: 2, order: "sparsemixer", jitter: 0.1 }, { experts: 9 }),
  ...(["softmax-topk", "sigmoid-topk", "topk-softmax", "topk-sigmoid"] as const).map((order, i) =>
    checkPlannedRouting({ ...base, order, ...(i < 2 && { normalize, correction: mark }) }, 9),
  ),
  checkPlannedRouting({ topK: 2, order: "sparsemixer", jitter: 0.1 }, 9),
  checkRouting(
    { topK: 2, order: "sparsemixer", jitter: 0.3, skip: { rule: "ratio", threshold: 0.9 } },
    { experts: 9 },
  ),
  checkRouting({ ...base, order: "softmax-topk", normalize: { power: 2 } }, { experts: 9 }),
  checkRouting(
    { ...base, order: "softmax-topk", normalize: { power: 1, least: 0.6, epsilon: 0.1 } },
    { experts: 9 },
  ),
  checkRouting({ ...base, order: "sigmoid-topk", correction: mark, normalize }, { experts: 9 }),
  ...(["max", "top2"] as const).flatMap((score) => [
    checkRouting(
      {
        topK: 4,
        order: "sigmoid-topk",
        correction: mark,
        normalize,
        scale: 2.5,
        groups: { count: 4, keep: 2, score },
      },
      { experts: 32 },
    ),
    // One group is gone, one has a single expert, and the best two may hold fewer than k.
    checkRouting(
      { topK: 4, order: "softmax-topk", groups: { count: 4, keep: 2, score } },
      { experts: 16, columns: 6, plan: kept([0, 1, 2, 9, 12, 14]) },
    ),
  ]),
  checkRouting(
    { ...base, order: "softmax-topk", normalize },
    {
      experts: 6,
      columns: 6,
      plan: kept([1, 4, 5], {
        routerMap: [
          [0.2, 1, 0, 0, -0.3, 0],
          [0, 0, 0.5, 0.1, 1, 0],
          [-1, 0.4, 0, 0, 0, 0.9],
        ],
        topK: 2,
      }),
    },
  ),
];

const shape = { heads: 4, kvHeads: 2, keyDim: 8, valueDim: 8, scale: 0.4, window: 0, chunk: 0 };
const sequences = [
  { tokens: 37, past: 0 },
  { tokens: 1, past: 140 },
  { tokens: 5, past: 60 },
];
const attention: KernelCheck[] = (["prefill", "split", "received"] as const).flatMap((way) => [
  checkAttention({ shape: { ...shape, valueDim: 80 }, sinks: true, sequences, way, sight: "rings" }),
  checkAttention({
    shape: { ...shape, kvHeads: 4, valueDim: 80 },
    sinks: true,
    sequences,
    way,
    sight: "spans",
  }),
  checkAttention({ shape: { ...shape, window: 9, valueDim: 80 }, sinks: true, sequences, way }),
  // Latent attention: sizes of keys and values that differ and are no multiples of 4.
  checkAttention({
    shape: { ...shape, kvHeads: 4, keyDim: 14, valueDim: 5, chunk: 16 },
    sinks: false,
    sequences,
    way,
  }),
]);

const short = [
  { tokens: 20, past: 0 },
  { tokens: 3, past: 70 },
];
const shortOnes = checkAttention({
  shape: { ...shape, keyDim: 20, valueDim: 80, window: 9 },
  sinks: false,
  sequences: short,
  way: "prefill",
});

const masked: KernelCheck[] = (["prefill", "received"] as const).map((way) =>
  checkAttention({
    shape,
    sinks: true,
    sequences: [...sequences, { tokens: 130, past: 0 }],
    way,
    sight: "blocks",
  }),
);

const rows: KernelCheck[] = [
  ...(["f32", "f16", "bf16"] as const).map((format) => checkMerge(format)),
  checkMerge("bf16", "f32"),
  ...(["rms", "layer"] as const).flatMap((kind) => [
    checkNorm(kind, 5),
    checkNorm(kind, 200),
    checkNorm(kind, 70, true),
  ]),
  ...[true, false].flatMap((interleaved) => [checkRotary(interleaved, 2), checkRotary(interleaved, 8)]),
  checkUnfold(),
  checkElementwise(),
  checkTargets(5),
  checkTargets(1000),
];

/** Products, which have kernels of their own on a device that is `Gpu.serial`. */
export const productCases: readonly KernelCheck[] = [...matmuls, ...experts];

const draws: KernelCheck[] = [
  ...[
    {},
    { repetitionPenalty: 1.5 },
    { temperature: 0.8, minP: 0.02 },
    { temperature: 0.8, topP: 0.9, repetitionPenalty: 1.3 },
    { temperature: 2, topK: 100, topP: 0.7, minP: 0.1 },
  ].map((rule) => checkDraw({ rows: 6, vocab: 1500, rule })),
  // One id more than two workgroups read, fewer ids than a digit has values, and one.
  checkDraw({ rows: 2, vocab: 8193, rule: { temperature: 1, topK: 3000 } }),
  checkDraw({ rows: 3, vocab: 37, rule: { temperature: 100, topK: 1000, topP: 0.5 } }),
  checkDraw({ rows: 2, vocab: 1, rule: { temperature: 1e-6, topP: 1e-12 } }),
];

/** Every kernel, each against a formula in float64. */
export const kernelCases: readonly KernelCheck[] = [
  ...productCases,
  ...routings,
  ...attention,
  shortOnes,
  ...masked,
  ...rows,
  ...draws,
];
