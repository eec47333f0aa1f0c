// node packages/backend-cpu/bench/graph-forms.mjs [forms] [score] [decode]
//
// What docs/plugins/cpu.md quotes: the forms of an MoE layer, scoring 200 samples, and decoding, on the shipped
// model. Prints Markdown tables. Times are medians of interleaved runs. Processor time is that of the whole process:
// with one thread it is the time that a run takes on a machine that does nothing else.
import { readFileSync } from "node:fs";
import { cpu } from "@coppice/backend-cpu";
import { loadModel } from "@coppice/checkpoint";
import { openFolder } from "@coppice/checkpoint/node";
import { modelPath, taskNames, taskPath } from "@coppice/demo-model";
import { Tokenizer } from "@huggingface/tokenizers";
import { moeForms } from "./moe-forms.mjs";

const read = (name) => JSON.parse(readFileSync(`${modelPath}/${name}`, "utf8"));
const tokenizer = new Tokenizer(read("tokenizer.json"), read("tokenizer_config.json"));
const checkpoint = await loadModel(await openFolder(modelPath));
const { model, weights } = checkpoint;

/** Prompts with their answers, an end behind each; positions and targets of the answer's tokens. */
function samples(task, count) {
  const lines = readFileSync(taskPath(task, "search"), "utf8").trim().split("\n").slice(0, count);
  const batch = { sequences: [], positions: [], targets: [] };
  for (const { prompt, answer } of lines.map((line) => JSON.parse(line))) {
    const before = tokenizer.encode(prompt).ids;
    const after = [...tokenizer.encode(answer, { add_special_tokens: false }).ids, model.endTokens[0]];
    batch.sequences.push(Int32Array.from([...before, ...after.slice(0, -1)]));
    batch.positions.push(Int32Array.from(after, (_, i) => before.length - 1 + i));
    batch.targets.push(Int32Array.from(after));
  }
  return batch;
}

/** Medians of interleaved runs, forward and backward in turn: wall and processor time in milliseconds. */
async function medians(works, repeats) {
  const names = Object.keys(works);
  const times = Object.fromEntries(names.map((name) => [name, { wall: [], processor: [] }]));
  for (let i = -2; i < repeats; i++) {
    for (const name of i & 1 ? names.toReversed() : names) {
      const [start, used] = [performance.now(), process.cpuUsage()];
      await works[name]();
      const { user, system } = process.cpuUsage(used);
      if (i < 0) continue;
      times[name].wall.push(performance.now() - start);
      times[name].processor.push((user + system) / 1000);
    }
  }
  return Object.fromEntries(
    names.map((name) => [name, { wall: median(times[name].wall), processor: median(times[name].processor) }]),
  );
}

const median = (values) => values.toSorted((a, b) => a - b)[values.length >> 1];

const row = (...cells) => process.stdout.write(`| ${cells.join(" | ")} |\n`);
const table = (...head) => {
  row(...head);
  row(...head.map(() => "---"));
};

async function compareForms() {
  const layer = model.layers[2];
  const { router, experts } = layer.feedForward;
  const read = async ({ gate, up, down }) => ({
    gate: await weights.read(gate),
    up: await weights.read(up),
    down: await weights.read(down),
  });
  const forms = await moeForms({
    hidden: model.hiddenSize,
    width: experts[0].width,
    router,
    experts: await Promise.all(experts.map(read)),
  });
  // Inputs and routing of real text.
  const seen = { input: [], routerLogits: [] };
  const runner = await (await cpu.create({}, undefined)).load(checkpoint);
  await runner.run({
    sequences: samples("arith", 300).sequences,
    tap: {
      fields: ["input", "routerLogits"],
      onLayer: ({ layer: index, input, routerLogits }) => {
        if (index !== layer.index) return;
        seen.input.push(input.slice());
        seen.routerLogits.push(routerLogits.slice());
      },
    },
  });
  await runner.dispose();
  const joined = (parts, count) => Float32Array.from(parts.flatMap((part) => [...part])).subarray(0, count);
  const names = Object.keys(forms);
  table("tokens", ...names.map((name) => `${name}, processor ms (ratio)`));
  for (const [tokens, repeats] of [
    [1, 200],
    [8, 100],
    [800, 25],
    [3000, 15],
  ]) {
    const normed = joined(seen.input, tokens * model.hiddenSize).slice();
    const logits = joined(seen.routerLogits, tokens * experts.length).slice();
    const residual = new Float32Array(normed.length);
    const works = Object.fromEntries(
      names.map((name) => [name, () => forms[name](normed, residual, logits)]),
    );
    const expected = await works.grouped();
    for (const name of names) {
      const worst = (await works[name]()).reduce(
        (most, value, i) => Math.max(most, Math.abs(value - expected[i])),
        0,
      );
      if (!(worst < 1e-4)) throw new Error(`${name} differs by ${worst}`);
    }
    const found = await medians(works, repeats);
    row(
      tokens,
      ...names.map((name) => {
        const time = found[name].processor;
        return `${time.toFixed(2)} (${(time / found.grouped.processor).toFixed(2)})`;
      }),
    );
  }
}

async function score() {
  table("task, 200 samples", "tokens", "processor ms, 1 thread", "wall ms, 1 thread", "wall ms, 2 threads");
  const runners = {};
  for (const threads of [1, 2]) {
    runners[threads] = await (await cpu.create({ threads }, undefined)).load(checkpoint);
  }
  for (const task of taskNames) {
    const batch = samples(task, 200);
    const tokens = batch.sequences.reduce((sum, { length }) => sum + length, 0);
    const works = { one: () => runners[1].run(batch), two: () => runners[2].run(batch) };
    const { one, two } = await medians(works, tokens > 10_000 ? 3 : 9);
    row(task, tokens, ...[one.processor, one.wall, two.wall].map((time) => time.toFixed(0)));
  }
  for (const runner of Object.values(runners)) await runner.dispose();
}

async function decode() {
  table("sequences at once", "processor ms a step, 1 thread", "wall ms, 1 thread", "wall ms, 2 threads");
  const { sequences } = samples("extract", 16);
  for (const count of [1, 16]) {
    const times = [];
    for (const threads of [1, 2]) {
      const runner = await (await cpu.create({ threads }, undefined)).load(checkpoint);
      const cache = runner.createCache(count);
      const targets = Array.from({ length: count }, () => Int32Array.of(0));
      let step = sequences.slice(0, count);
      const decodeStep = async () => {
        const positions = step.map(({ length }) => Int32Array.of(length - 1));
        const { argmax } = await runner.run({ sequences: step, positions, targets, cache });
        step = Array.from(argmax, (token) => Int32Array.of(token));
      };
      const { one } = await medians({ one: decodeStep }, 64);
      times.push(one);
      cache.dispose();
      await runner.dispose();
    }
    const [single, double] = times;
    row(count, ...[single.processor, single.wall, double.wall].map((time) => time.toFixed(1)));
  }
}

const sections = { forms: compareForms, score, decode };
for (const name of process.argv.length > 2 ? process.argv.slice(2) : Object.keys(sections)) {
  await sections[name]();
  process.stdout.write("\n");
}
await checkpoint.close();
