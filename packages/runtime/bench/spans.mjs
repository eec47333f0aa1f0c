// Decoding behind a long text with exported folders under attention plans: 8 heads of size 64, random weights, and little else in the
// model. All folders take turns, step by step, in one process.
//
//   npm run bench -- spans [--tokens 16384] [--layers 2] [--steps 31] [--threads 1]
//
// Prints a Markdown table of the median and the least step, of how long the text took to read, and of what caches take: the memory that is
// free again when a text has ended. Processor time is that of the whole process: with one thread it is what a step takes on a
// machine that does nothing else.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { loadModel } from "@coppice/checkpoint";
import { folderTarget, openFolder, writeSyntheticCheckpoint } from "@coppice/checkpoint/node";
import { attentionPlanModel } from "@coppice/core";
import { exportOnnx } from "@coppice/export-onnx";
import { openModelFolder } from "@coppice/runtime/node";
import { heads, median, spanOptions, spanPlans } from "../../../tools/span-plans.mjs";

const { tokens, layers, steps, threads } = spanOptions();
const scratch = mkdtempSync(join(tmpdir(), "coppice-spans-"));
process.on("exit", () => rmSync(scratch, { recursive: true, force: true }));
setFlagsFromString("--expose-gc");
const collect = runInNewContext("gc");

const source = join(scratch, "model");
await writeSyntheticCheckpoint(source, {
  family: "mixtral",
  layers,
  heads,
  kvHeads: heads,
  headDim: 64,
  hiddenSize: 128,
  vocabSize: 256,
  experts: 2,
  topK: 1,
  expertWidth: 32,
  config: { max_position_embeddings: 2 * tokens, eos_token_id: null },
});
const loaded = await loadModel(await openFolder(source));

const plans = spanPlans(attentionPlanModel(loaded.model), layers);

const used = () => {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1000;
};
/** Bytes of arrays that are in use. */
const held = async () => {
  // Arrays of a collected object are given back a moment later.
  for (let i = 0; i < 3; i++) {
    collect();
    await promisify(setImmediate)();
  }
  return process.memoryUsage().arrayBuffers;
};
const prompt = Int32Array.from({ length: tokens }, (_, i) => (i * 37) % 256);
const runs = {};
for (const [name, attention] of Object.entries(plans)) {
  const folder = join(scratch, name.replaceAll("/", "-"));
  const summary = await exportOnnx(loaded, folderTarget(folder), {
    target: "cpu",
    attention: attention ?? null,
    ...(attention && { attentionLength: tokens }),
  });
  const model = await openModelFolder(folder, { threads, keptPrefixes: 0 });
  process.stderr.write(`Reads ${tokens} tokens: ${name}\n`);
  const before = await held();
  const start = used();
  const text = model.stream(prompt, { maxTokens: tokens });
  await text.next();
  const prefill = used() - start;
  // What the prompt alone needed goes with the first step.
  await text.next();
  const bytes = (await held()) - before;
  runs[name] = { density: summary.attention?.density ?? 1, text, prefill, bytes, times: [] };
}
const names = Object.keys(plans);
for (let i = -2; i < steps; i++) {
  for (const name of i & 1 ? names.toReversed() : names) {
    const start = used();
    await runs[name].text.next();
    if (i >= 0) runs[name].times.push(used() - start);
  }
}

const row = (...cells) => process.stdout.write(`| ${cells.join(" | ")} |\n`);
row(
  "spans",
  "density",
  "processor ms a step",
  "times faster",
  "least",
  "times faster",
  "text read in s",
  "cache, MiB",
  "share",
);
row(...Array(9).fill("---"));
const { dense } = runs;
for (const [name, { density, times, prefill, bytes }] of Object.entries(runs)) {
  const [usual, least] = [median(times), Math.min(...times)];
  row(
    name,
    density.toFixed(2),
    usual.toFixed(2),
    (median(dense.times) / usual).toFixed(2),
    least.toFixed(2),
    (Math.min(...dense.times) / least).toFixed(2),
    (prefill / 1000).toFixed(1),
    (bytes / 2 ** 20).toFixed(1),
    (bytes / dense.bytes).toFixed(2),
  );
}
// Native threads would keep the process.
process.exit(0);
