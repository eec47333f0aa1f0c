// node packages/cli/bench/engines-webgpu.mjs [--model folder|random] [--prompt 512] [--steps 32] [--rounds 5]
//
// The same prompt and the same tokens behind it on both engines of the webgpu backend: our kernels alone, and ONNX Runtime's WebGPU
// provider for what it has right. Tokens per second of the prompt and of one token at a time, medians of rounds that take turns.
// `random` is a model of 128 million made-up weights: 4 layers of 8 experts, top-2, hidden 1024.
// Needs npm `webgpu` and `onnxruntime-web`. Exits with 1 when logits are more than 0.001 of the largest apart.
import { parseArgs } from "node:util";
import { createWebgpuBackend, nodeDevices } from "@coppice/backend-webgpu/node";
import { loadModel } from "@coppice/checkpoint";
import { openFolder } from "@coppice/checkpoint/node";
import { randomModel } from "@coppice/plugin-kit";

const { values } = parseArgs({
  options: {
    model: { type: "string", default: "packages/demo-model/model" },
    prompt: { type: "string", default: "512" },
    steps: { type: "string", default: "32" },
    rounds: { type: "string", default: "5" },
  },
});
const steps = Number(values.steps);
const checkpoint =
  values.model === "random"
    ? randomModel({
        seed: 1,
        dtype: "BF16",
        layers: 4,
        hidden: 1024,
        width: 1024,
        experts: 8,
        topK: 2,
        heads: 16,
        kvHeads: 4,
        headDim: 64,
        vocab: 8192,
        context: 4096,
      })
    : await loadModel(await openFolder(values.model));
const { vocabSize, contextLength } = checkpoint.model;
const length = Math.min(Number(values.prompt), contextLength - steps);
// Any tokens do: what is computed takes as long.
const token = (i) => (7919 * (i + 1)) % vocabSize;
const prompt = Int32Array.from({ length }, (_, i) => token(i));

const engines = [];
for (const engine of ["own", "ort"]) {
  const runner = await createWebgpuBackend(await nodeDevices(), { engine }).load(checkpoint);
  engines.push({ engine, runner, prefill: [], decode: [], logits: undefined });
}

/** One prompt and the steps behind it; times go to the engine, but for the first round, which compiles. */
async function round(own, isTimed) {
  const { runner } = own;
  const cache = runner.createCache(1);
  const last = (sequence) => ({
    sequences: [sequence],
    positions: [Int32Array.of(sequence.length - 1)],
    cache,
  });
  const start = performance.now();
  await runner.run(last(prompt));
  const between = performance.now();
  for (let step = 0; step < steps; step++) {
    own.logits = (await runner.run(last(Int32Array.of(token(length + step))))).logits;
  }
  const end = performance.now();
  cache.dispose();
  if (!isTimed) return;
  own.prefill.push((1000 * length) / (between - start));
  own.decode.push((1000 * steps) / (end - between));
}

for (let i = 0; i <= Number(values.rounds); i++) for (const own of engines) await round(own, i > 0);

const median = (found) => found.sort((a, b) => a - b)[found.length >> 1];
console.log(`prompt of ${length} tokens, ${steps} steps, Node ${process.version}`);
console.log("| engine | prompt, tokens per second | decoding, tokens per second |\n|---|---|---|");
for (const { engine, prefill, decode } of engines) {
  console.log(`| ${engine} | ${median(prefill).toFixed(1)} | ${median(decode).toFixed(1)} |`);
}
const [own, ort] = engines;
let [worst, largest] = [0, 0];
for (const [i, value] of own.logits.entries()) {
  worst = Math.max(worst, Math.abs(value - ort.logits[i]));
  largest = Math.max(largest, Math.abs(value));
}
console.log(`logits at most ${worst.toExponential(1)} apart (largest ${largest.toFixed(1)})`);
for (const { runner } of engines) await runner.dispose();
process.exit(worst <= 0.001 * largest ? 0 : 1);
