// node packages/backend-cpu/bench/attention.mjs [--tokens 16384] [--layers 2] [--steps 31] [--threads 1]
//
// Decoding behind a long text under attention plans: 8 heads of size 64, random weights, and little else in the model. Prints
// a Markdown table of interleaved steps, their medians and the least of each, and what the caches take. Processor time is that
// of the whole process: with one thread it is the time that a step takes on a machine that does nothing else.
import { cpu } from "@coppice/backend-cpu";
import { attentionPlanModel, spanDensity } from "@coppice/core";
import { randomModel } from "@coppice/plugin-kit";
import { heads, median, spanOptions, spanPlans } from "../../../tools/span-plans.mjs";

const { tokens, layers, steps, threads } = spanOptions();
const context = 2 * tokens;
const loaded = randomModel({
  layers,
  heads,
  kvHeads: heads,
  headDim: 64,
  hidden: 128,
  width: 32,
  vocab: 256,
  denseLayers: Array.from({ length: layers }, (_, layer) => layer),
  context,
});

const plans = spanPlans(attentionPlanModel(loaded.model), layers);

const runner = await (await cpu.create({ threads }, undefined)).load(loaded);
const text = Int32Array.from({ length: tokens }, (_, i) => (i * 37) % 256);
const next = { sequences: [Int32Array.of(5)], positions: [Int32Array.of(0)], targets: [Int32Array.of(0)] };
const caches = {};
const times = {};
for (const [name, plan] of Object.entries(plans)) {
  caches[name] = runner.createCache(1, plan && { plan, lengths: [tokens] });
  times[name] = [];
  process.stderr.write(`Reads ${tokens} tokens: ${name}\n`);
  await runner.run({ sequences: [text], cache: caches[name] });
}
const names = Object.keys(plans);
for (let i = -2; i < steps; i++) {
  for (const name of i & 1 ? names.toReversed() : names) {
    const used = process.cpuUsage();
    await runner.run({ ...next, cache: caches[name] });
    const { user, system } = process.cpuUsage(used);
    if (i >= 0) times[name].push((user + system) / 1000);
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
  "cache, MiB",
  "share",
);
row(...Array(8).fill("---"));
const of = (name) => [median(times[name]), Math.min(...times[name]), caches[name].bytes];
const [usual, least, bytes] = of("dense");
for (const name of names) {
  const [ownUsual, ownLeast, ownBytes] = of(name);
  row(
    name,
    (plans[name] ? spanDensity(plans[name], tokens) : 1).toFixed(2),
    ownUsual.toFixed(2),
    (usual / ownUsual).toFixed(2),
    ownLeast.toFixed(2),
    (least / ownLeast).toFixed(2),
    (ownBytes / 2 ** 20).toFixed(1),
    (ownBytes / bytes).toFixed(2),
  );
}
await runner.dispose();
