// node packages/cli/bench/precision-webgpu.mjs [--model folder] [--task file.jsonl] [--prompts 32] [--steps 16]
//
// How far products in float16 on the webgpu backend are from those in float32: logits at every position of prompts, and the
// tokens that follow them greedily. Needs npm `webgpu` and a device that multiplies matrices of float16. Exits with 1 when logits
// are more than 0.02 apart or a token differs.
import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { createWebgpuBackend } from "@coppice/backend-webgpu";
import { loadModel } from "@coppice/checkpoint";
import { openFolder } from "@coppice/checkpoint/node";
import { mostLikely } from "@coppice/core";
import { encodeTask, loadTokenizer, parseTask } from "@coppice/evaluate";

const { values } = parseArgs({
  options: {
    model: { type: "string", default: "packages/demo-model/model" },
    task: { type: "string", default: "packages/demo-model/tasks/search/arith.jsonl" },
    prompts: { type: "string", default: "32" },
    steps: { type: "string", default: "16" },
  },
});
const steps = Number(values.steps);
const checkpoint = await loadModel(await openFolder(values.model));
const { model } = checkpoint;
const tokenizer = await loadTokenizer(checkpoint.folder);
const { samples } = encodeTask(parseTask(readFileSync(values.task, "utf8"), values.task), {
  tokenizer,
  model,
  limit: Number(values.prompts),
});
const prompts = samples.map(({ sequences, promptTokens }) => sequences[0].ids.slice(0, promptTokens));

const { create } = await import("webgpu");
const dawn = create(["enable-dawn-features=allow_unsafe_apis,vulkan_enable_f16_on_nvidia"]);
const source = {
  name: "npm webgpu",
  requestAdapter: () => dawn.requestAdapter({ powerPreference: "high-performance" }),
};

/** Logits at all positions of all prompts, in one run, and the tokens that follow each. */
async function compute(precision) {
  const runner = await createWebgpuBackend(source, { precision }).load(checkpoint);
  const positions = prompts.map((ids) => Int32Array.from(ids, (_, i) => i));
  const { logits } = await runner.run({ sequences: prompts, positions });
  const cache = runner.createCache(prompts.length);
  const followed = prompts.map(() => []);
  let sequences = prompts;
  for (let step = 0; step < steps; step++) {
    const last = await runner.run({
      sequences,
      positions: sequences.map((ids) => Int32Array.of(ids.length - 1)),
      cache,
    });
    sequences = prompts.map((_, i) => {
      const token = mostLikely(last.logits.subarray(i * model.vocabSize, (i + 1) * model.vocabSize));
      followed[i].push(token);
      return Int32Array.of(token);
    });
  }
  await runner.dispose();
  return { logits: Float32Array.from(logits), followed };
}

const exact = await compute("f32");
const half = await compute("f16");
let worst = 0;
let largest = 0;
for (const [i, value] of exact.logits.entries()) {
  worst = Math.max(worst, Math.abs(value - half.logits[i]));
  largest = Math.max(largest, Math.abs(value));
}
const same = exact.followed.filter((tokens, i) => tokens.every((token, t) => token === half.followed[i][t]));
console.log(
  `${prompts.length} prompts of ${values.task}: ${exact.logits.length / model.vocabSize} positions`,
);
console.log(`logits at most ${worst.toExponential(2)} apart (largest ${largest.toFixed(1)})`);
console.log(`the ${steps} tokens that follow are the same for ${same.length} of ${prompts.length}`);
process.exit(worst <= 0.02 && same.length === prompts.length ? 0 : 1);
