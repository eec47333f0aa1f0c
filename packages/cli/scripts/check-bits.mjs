// Slow check of bit allocation: the demo model at 3 bits per weight on average, chosen by what every part loses, against
// mixes of 2 and 4 bits of the same bytes; and what of it fits 10 MB. Chosen on search samples, judged on others.
// Usage: npm run check:bits [-- <samples per task>]
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { allocateBits, allocateMcMoe, measureSensitivity } from "@coppice/allocate";
import { cpu } from "@coppice/backend-cpu";
import { applyPlan, loadModel } from "@coppice/checkpoint";
import { folderTarget, openFolder } from "@coppice/checkpoint/node";
import { createPlan, createRegistry, dequantizeMatrix, Rng } from "@coppice/core";
import { modelPath, taskPath } from "@coppice/demo-model";
import { divergence, encodeTask, loadTokenizer, parseTask, scoreSamples } from "@coppice/evaluate";
import { hqq, modelMatrices, packedSize, quantizeCheckpoint } from "@coppice/quantizers";

const tasks = ["arith", "extract", "json", "recall", "sort", "translate"];
const perTask = Number(process.argv[2] ?? 50);
/** Search samples of every task that sensitivity is measured on, and holdout samples of every task that KL is of. */
const [probes, compared] = [6, 8];
const fileLimit = 10_000_000;
/** Room for router rows and names in config.json of more experts than four. */
const moreExperts = 40_000;
const formatOf = (bits) => ({ bits, groupSize: 32, symmetric: false });

const registry = createRegistry([cpu, hqq]);
const backend = await registry.create("backend", "cpu", { threads: 2 }, undefined);
const quantizer = await registry.create("quantizer", "hqq", {}, undefined);
const folder = mkdtempSync(join(tmpdir(), "coppice-check-bits-"));
const whole = await loadModel(await openFolder(modelPath));
const { model } = whole;
const tokenizer = await loadTokenizer(whole.folder);
const matrices = modelMatrices(model).map((matrix) => ({ ...matrix, name: matrix.weight.name }));
const shapes = new Map(matrices.map(({ name, weight }) => [name, weight.shape]));
const bytes = (name, bits) => packedSize(shapes.get(name), formatOf(bits));
const sizeOf = (bitsOf) => matrices.reduce((sum, matrix) => sum + bytes(matrix.name, bitsOf(matrix)), 0);

const read = async (split, limit) =>
  Promise.all(
    tasks.map(async (name) => {
      const task = parseTask(readFileSync(taskPath(name, split), "utf8"), name);
      return encodeTask(task, { tokenizer, model, limit });
    }),
  );
const sequencesOf = (encoded, count) => {
  const all = encoded.flatMap(({ samples }) => samples.slice(0, count).flatMap(({ sequences }) => sequences));
  return { sequences: all.map(({ ids }) => ids), positions: all.map(({ positions }) => positions) };
};

/** Runs a checkpoint on the holdout samples. */
async function judge(loaded, teacher) {
  const runner = await backend.load({ model: loaded.model, weights: loaded.weights });
  try {
    const { logits } = await runner.run(sequencesOf(holdout, compared));
    const { vocabSize } = loaded.model;
    let kl = 0;
    for (let at = 0; teacher && at < logits.length; at += vocabSize) {
      kl += divergence(teacher.subarray(at, at + vocabSize), logits.subarray(at, at + vocabSize));
    }
    const shares = [];
    for (const task of holdout) {
      const { scores } = await scoreSamples({ runner, tokenizer, task, metric: "exact-match-tokens" });
      shares.push(scores.reduce((a, b) => a + b, 0) / scores.length);
    }
    const mean = shares.reduce((a, b) => a + b, 0) / shares.length;
    return { logits, kl: (kl * vocabSize) / logits.length, shares, mean };
  } finally {
    await runner.dispose();
  }
}

function show(name, size, { kl, shares, mean }) {
  const cells = [kl.toFixed(4), mean.toFixed(3), ...shares.map((share) => share.toFixed(2).padEnd(9))];
  console.log([name.padEnd(32), (size / 1e6).toFixed(2).padEnd(7), ...cells].join("  "));
}

/** Quantizes a checkpoint into a folder, and judges what is read back. @returns bytes of all files, and the mean score */
async function row(name, bitsOf, { source = whole, countsFiles = false } = {}) {
  const out = join(folder, name.replaceAll(/\W+/g, "-"));
  const summary = await quantizeCheckpoint(source, folderTarget(out), {
    quantizer,
    format: (matrix) => formatOf(bitsOf(matrix)),
  });
  const written = await loadModel(await openFolder(out));
  const found = await judge(written, full.logits);
  await written.close();
  rmSync(out, { recursive: true });
  show(name, countsFiles ? summary.bytes : summary.tensorBytes, found);
  return { ...found, bytes: summary.bytes };
}

/** The checkpoint with some experts alone, and what its matrices were called before. */
async function pruned(name, keptOf) {
  const plan = createPlan(
    model,
    model.layers.map(({ index }) => ({ layer: index, experts: keptOf(index) })),
  );
  const out = join(folder, name);
  await applyPlan(whole, plan, folderTarget(out));
  const oldName = ({ weight, layer, expert }) =>
    expert === undefined
      ? weight.name
      : weight.name.replace(`experts.${expert}.`, `experts.${keptOf(layer)[expert]}.`);
  return { source: await loadModel(await openFolder(out)), oldName };
}

let failed = false;
const demand = (ok, what) => {
  failed ||= !ok;
  console.log(`${ok ? "reached" : "MISSED"}  ${what}`);
};

let holdout;
let full;
try {
  holdout = await read("dev", Math.max(perTask, compared));
  const started = performance.now();
  const sensitivity = await measureSensitivity({
    model,
    weights: whole.weights,
    backend,
    matrices,
    bits: [2, 4, 8],
    ...sequencesOf(await read("search", probes), probes),
    divergence,
    quantized: async ({ name, weight }, bits) => {
      const [rows, columns] = weight.shape;
      const weights = await whole.weights.read(weight);
      const request = { name, weights, rows, columns, format: formatOf(bits), scales: "BF16" };
      return dequantizeMatrix((await quantizer.quantize(request)).matrix);
    },
  });
  console.log(`measured in ${((performance.now() - started) / 60_000).toFixed(1)} minutes`);
  const budget = (sizeOf(() => 2) + sizeOf(() => 4)) / 2;
  const rng = Rng.fromSeed(1);
  const shuffled = rng.shuffle(matrices.map(({ name }) => name));
  const wide = new Set();
  let size = sizeOf(() => 2);
  for (const name of shuffled) {
    const more = bytes(name, 4) - bytes(name, 2);
    if (size + more > budget) continue;
    size += more;
    wide.add(name);
  }
  const isFirst = ({ layer, role }) =>
    layer === undefined ? role === "embedding" : layer < model.layers.length / 2;
  const expertBytes =
    3 *
    (bytes(matrices.find(({ expert }) => expert === 0).name, 4) -
      bytes(matrices.find(({ expert }) => expert === 0).name, 2));
  const left = budget - sizeOf(({ expert }) => (expert === undefined ? 4 : 2));
  const wideExperts = Math.floor(left / expertBytes);
  const isWide = ({ layer, expert }) =>
    expert === undefined || expert * model.layers.length + layer < wideExperts;

  console.log(
    `${"bits".padEnd(32)}  MB       KL      mean   ${tasks.map((task) => task.padEnd(9)).join("  ")}`,
  );
  full = await judge(whole, undefined);
  show(
    "as it is",
    [...whole.tensors.values()].reduce((sum, { begin, end }) => sum + end - begin, 0),
    full,
  );
  await row("4", () => 4);
  const mixes = [
    await row("2 and 4, at random", ({ name, weight }) => (wide.has(name ?? weight.name) ? 4 : 2)),
    await row("2 and 4, first half 4", (matrix) => (isFirst(matrix) ? 4 : 2)),
    await row("2 and 4, last half 4", (matrix) => (isFirst(matrix) ? 2 : 4)),
    await row(`2 and 4, ${wideExperts} experts 4`, (matrix) => (isWide(matrix) ? 4 : 2)),
  ];
  const chosenBits = ({ matrices: found }) => {
    const bits = new Map(found.map(({ name, bits }) => [name, bits]));
    return ({ weight }) => bits.get(weight.name);
  };
  const least = ({ expert }) => (expert === undefined ? 4 : 0);
  const chosen = allocateBits({ model, sensitivity, bytes, budget, least });
  const found = await row("chosen", chosenBits(chosen));
  const mc = allocateMcMoe({
    model,
    sensitivity,
    bytes,
    average: 2 + (2 * Math.floor(wideExperts / model.layers.length)) / 8,
    widths: [2, 4],
  });
  await row("MC-MoE's program, 2 and 4", chosenBits(mc));

  const dropping = async (name, limit) => {
    const choice = allocateBits({ model, sensitivity, bytes, budget: limit, least, prune: "uniform" });
    const gone = (layer) => choice.dropped.find((one) => one.layer === layer)?.experts ?? [];
    const keptOf = (layer) => [0, 1, 2, 3, 4, 5, 6, 7].filter((expert) => !gone(layer).includes(expert));
    const { source, oldName } = await pruned(name, keptOf);
    const bits = new Map(choice.matrices.map((matrix) => [matrix.name, matrix.bits]));
    return { source, bitsOf: (matrix) => bits.get(oldName(matrix)), keep: keptOf(0).length };
  };
  const at3 = await dropping("at-3-bits", budget);
  await row(`chosen, keep ${at3.keep}`, at3.bitsOf, { source: at3.source });

  const mixed = join(folder, "mix.jsonl");
  writeFileSync(
    mixed,
    tasks
      .map((name) => readFileSync(taskPath(name, "search"), "utf8").split("\n").slice(0, 40).join("\n"))
      .join("\n"),
  );
  const cli = fileURLToPath(new URL("../dist/bin.js", import.meta.url));
  const kept = join(folder, "keep-4");
  const args = ["prune", modelPath, "--keep", "4", "--criterion", "reap", "--data", mixed, "--out", kept];
  const { status, stderr } = spawnSync(process.execPath, [cli, ...args], { encoding: "utf8" });
  if (status !== 0) throw new Error(stderr);
  const small = await loadModel(await openFolder(kept));
  const files = { countsFiles: true };
  const keep4 = await row("keep 4 by reap, 4 (all files)", () => 4, { source: small, ...files });
  const others =
    keep4.bytes -
    matrices.reduce(
      (sum, { name, expert }) => sum + (expert === undefined || expert < 4 ? bytes(name, 4) : 0),
      0,
    );
  const within = await dropping("within", fileLimit - others - moreExperts);
  const joint = await row(`chosen, keep ${within.keep} (all files)`, within.bitsOf, {
    source: within.source,
    ...files,
  });

  const best = Math.max(...mixes.map(({ mean }) => mean));
  const nearest = Math.min(...mixes.map(({ kl }) => kl));
  demand(chosen.bytes <= budget, `chosen takes ${chosen.bytes} of ${budget} bytes`);
  demand(
    found.kl < nearest,
    `KL ${found.kl.toFixed(4)} below that of all mixes of the same bytes, ${nearest.toFixed(4)}`,
  );
  demand(
    found.mean > best,
    `mean ${found.mean.toFixed(3)} above that of all mixes of the same bytes, ${best.toFixed(3)}`,
  );
  demand(
    keep4.bytes < fileLimit,
    `keep 4 and 4 bits take ${keep4.bytes} bytes, mean ${keep4.mean.toFixed(3)}`,
  );
  demand(
    joint.bytes < fileLimit,
    `the choice within 10 MB takes ${joint.bytes} bytes, mean ${joint.mean.toFixed(3)}`,
  );
} finally {
  await whole.close();
  rmSync(folder, { recursive: true, force: true });
}
process.exit(failed ? 1 : 0);
