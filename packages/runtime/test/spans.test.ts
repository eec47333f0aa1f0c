import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { reference } from "@coppice/backend-reference";
import { applyPlan, type LoadedCheckpoint, loadModel, memoryFolder, memoryTarget } from "@coppice/checkpoint";
import { folderTarget, openFolder } from "@coppice/checkpoint/node";
import { type AttentionPlan, CachePlaces, createPlan, moeLayers, Rng } from "@coppice/core";
import { exportOnnx } from "@coppice/export-onnx";
import { sampleAttention } from "@coppice/plugin-kit";
import { type FixtureName, fixturePath } from "@coppice/plugin-kit/node";
import { quantizeCheckpoint, rtn, uniformFormat } from "@coppice/quantizers";
import { openExportedFolder, openModelFolder } from "@coppice/runtime/node";
import * as node from "onnxruntime-node";
import * as web from "onnxruntime-web";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { readExportedConfig } from "../src/exported-config.js";
import { graphInterface } from "../src/graph-interface.js";
import type { OnnxRuntime } from "../src/onnx-runtime.js";
import { type LoadedGraph, Ones, Sequence } from "../src/sequence.js";
import { SpanBias } from "../src/span-bias.js";
import { Turns } from "../src/turns.js";

let scratch: string;
beforeAll(async () => {
  web.env.wasm.numThreads = 1;
  scratch = await mkdtemp(join(tmpdir(), "coppice-spans-"));
});
afterAll(() => rm(scratch, { recursive: true, force: true }));

const context = 512;
const ids = Int32Array.from({ length: context }, (_, i) => Rng.fromSeed(i).integer(256));

/** The first and the third head of a layer are alike. Windows that wrap up to a hundred times, one that is longer than most prompts, and heads that see everything. */
const rules = [
  { alpha: 8, beta: 0 },
  { alpha: 0, beta: 1 },
  { alpha: 0, beta: 0.375 },
  { alpha: 40, beta: 0 },
];

function planOf({ model }: LoadedCheckpoint): AttentionPlan {
  const sample = sampleAttention(model, { rules });
  const layers = sample.layers.map(
    (heads, layer) => heads?.map((_, head) => (layer + (head === 2 ? 0 : head)) % 4) ?? null,
  );
  return { ...sample, layers };
}

/** [tokens, vocab], with explicit masks */
async function masked(loaded: LoadedCheckpoint, plan: AttentionPlan): Promise<Float32Array> {
  const backend = await reference.create({}, undefined);
  await using runner = await backend.load(loaded);
  const { logits } = await runner.run({
    sequences: [ids],
    positions: [Int32Array.from(ids.keys())],
    attention: { plan },
  });
  return logits as Float32Array;
}

/** What runs, whether it may extend what it is given, and whether it is asked for what is new alone. */
interface Way {
  readonly runtime: OnnxRuntime;
  readonly inPlace: boolean;
  readonly newest: boolean;
  readonly sparesPresent: boolean;
}

async function openGraph(
  folder: string,
  file: string,
  spans: Parameters<typeof graphInterface>[2],
  { newest, ...options }: Way,
): Promise<LoadedGraph & AsyncDisposable> {
  const { InferenceSession } = options.runtime;
  const path = join(folder, "onnx", file);
  const data = { path: `${file}_data`, data: new Uint8Array(await readFile(`${path}_data`)) };
  const session = await InferenceSession.create(new Uint8Array(await readFile(path)), {
    externalData: [data],
  });
  const io = graphInterface(session, folder, spans);
  expect(io.newest).toBeDefined();
  return {
    ...options,
    session,
    io: newest ? io : { ...io, newest: undefined },
    turns: new Turns(),
    chunk: 37,
    ones: new Ones(),
    bias: new SpanBias(),
    released: () => false,
    [Symbol.asyncDispose]: () => session.release(),
  };
}

/**
 * Runs all tokens: a prompt shorter than the sinks, one longer than most windows, pieces of so many tokens, another prompt, and the
 * rest, single tokens last.
 */
async function expectMasked(graph: LoadedGraph, expected: Float32Array, vocab: number, size = 1) {
  const sequence = new Sequence(graph);
  const pieces = (from: number, to: number, size: number) =>
    Array.from({ length: Math.ceil((to - from) / size) }, (_, i) => Math.min(to, from + size * (i + 1)));
  const ends = [
    2,
    3,
    160,
    ...pieces(160, 330, size),
    371,
    ...pieces(371, 480, size),
    ...pieces(480, context, 1),
  ];
  let worst = 0;
  let begin = 0;
  for (const end of ends) {
    const logits = await sequence.logits(ids.subarray(begin, end));
    const row = expected.subarray((end - 1) * vocab, end * vocab);
    for (const [i, value] of row.entries()) worst = Math.max(worst, Math.abs(value - (logits[i] as number)));
    begin = end;
  }
  expect(worst).toBeLessThan(1e-4);
  // Heads with a span keep no more than it, whatever came before.
  for (const { input, span } of graph.io.cache) {
    const places = sequence.past[input]?.dims[2] as number;
    if (span) expect(places).toBeLessThanOrEqual(new CachePlaces(span).room + 1);
    else expect(places).toBeGreaterThanOrEqual(context);
  }
}

const inMemory: Way = { runtime: node, inPlace: true, newest: true, sparesPresent: true };

/** Plain heads; learned sinks, and layers that slide already; norms over all heads, of which a KV head has one. */
describe.each<[FixtureName, Way[]]>([
  [
    "mixtral",
    [
      inMemory,
      { ...inMemory, sparesPresent: false },
      { ...inMemory, newest: false },
      { ...inMemory, inPlace: false, newest: false },
      { ...inMemory, runtime: web, inPlace: false, newest: false },
    ],
  ],
  ["gpt_oss", [inMemory]],
  ["olmoe", [inMemory]],
])("%s under a plan", (name, runtimes) => {
  it("computes what the masked reference backend does, prompt by prompt and for hundreds of single tokens", async () => {
    await using loaded = await loadModel(await openFolder(fixturePath(name)));
    const plan = planOf(loaded);
    const expected = await masked(loaded, plan);
    const folder = join(scratch, name);
    const { attention } = await exportOnnx(loaded, folderTarget(folder), { target: "cpu", attention: plan });
    expect(attention).toMatchObject({ length: context });
    const { spans } = await readExportedConfig(await openExportedFolder(folder));
    for (const options of runtimes) {
      await using graph = await openGraph(folder, "model.onnx", spans, options);
      await expectMasked(graph, expected, loaded.model.vocabSize, options === inMemory ? 1 : 4);
    }
  });
});

it("works together with experts that were pruned and quantized, and travels with them", async () => {
  await using original = await loadModel(await openFolder(fixturePath("olmoe")));
  const plan = planOf(original);
  const pruned = memoryTarget();
  // All that are left run: rounding may move a token across a tie between two.
  const keep = createPlan(
    original.model,
    moeLayers(original.model).map(({ index }) => ({ layer: index, experts: [0, 5], topK: 2 })),
  );
  await applyPlan(original, keep, pruned, { attention: plan });
  await using small = await loadModel(memoryFolder(pruned.files));
  const packed = memoryTarget();
  await quantizeCheckpoint(small, packed, {
    quantizer: await rtn.create({ clip: false }, undefined),
    format: uniformFormat({ bits: 4, groupSize: 16, symmetric: true, head: 4, embedding: 4 }),
  });
  await using loaded = await loadModel(memoryFolder(packed.files));
  const folder = join(scratch, "pruned-q4");
  // Nobody says it again.
  const { type, attention } = await exportOnnx(loaded, folderTarget(folder), { target: "cpu" });
  expect({ type, attention }).toMatchObject({ type: "q4", attention: { length: context } });
  const { spans } = await readExportedConfig(await openExportedFolder(folder));
  await using graph = await openGraph(folder, "model_q4.onnx", spans, inMemory);
  await expectMasked(graph, await masked(loaded, plan), loaded.model.vocabSize);
});

it("writes on from conversations that were kept, and begins again where later tokens took the places", async () => {
  await using loaded = await loadModel(await openFolder(fixturePath("qwen3_moe")));
  const plan = planOf(loaded);
  const folder = join(scratch, "conversation");
  await exportOnnx(loaded, folderTarget(folder), { target: "cpu", attention: plan });
  const fresh = async (prompt: Int32Array) => {
    await using model = await openModelFolder(folder, { keptPrefixes: 0 });
    return [...(await model.generate(prompt, { maxTokens: 20 })).tokens];
  };
  await using model = await openModelFolder(folder, { chunk: 11 });
  const first = await model.generate(ids.subarray(0, 90), { maxTokens: 30 });
  const turn = Int32Array.from([...ids.subarray(0, 90), ...first.tokens, 7, 9, 1]);
  const second = await model.generate(turn, { maxTokens: 20 });
  expect(second.cachedTokens).toBe(90 + first.tokens.length - 1);
  expect([...second.tokens]).toEqual(await fresh(turn));
  // Another end of the same beginning.
  const other = Int32Array.from([...ids.subarray(0, 70), 3, 3]);
  const third = await model.generate(other, { maxTokens: 20 });
  expect(third.cachedTokens).toBe(0);
  expect([...third.tokens]).toEqual(await fresh(other));
});

it("names inputs that config.json does not explain", async () => {
  await using loaded = await loadModel(await openFolder(fixturePath("mixtral")));
  const folder = join(scratch, "unexplained");
  await exportOnnx(loaded, folderTarget(folder), { target: "cpu", attention: planOf(loaded) });
  const path = join(folder, "config.json");
  const { coppice_export, ...config } = JSON.parse(await readFile(path, "utf8"));
  await writeFile(path, JSON.stringify(config));
  await expect(openModelFolder(folder)).rejects.toThrow(
    /attention_bias\.0, and config.json says nothing of a span 0/,
  );
});
