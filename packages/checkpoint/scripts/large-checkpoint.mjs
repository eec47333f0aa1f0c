// Shows that a checkpoint far larger than memory rules allow is inspected at once and pruned by streaming.
//
//   node packages/checkpoint/scripts/large-checkpoint.mjs [folder] [options]
//
//   --gigabytes <n>        size of the checkpoint; default 12
//   --shard-gigabytes <n>  size of its files; default 3
//   --form <form>          separate (Mixtral, default), fused (the same, experts stacked), fp8 (DeepSeek-V3), mxfp4 (GPT-OSS)
//   --merge                every kept expert is a merge of two
//   --units                every kept expert is put together from two, the hidden units of one of them permuted
//
// Makes an untrained checkpoint in a new folder below `folder` (default: the system's folder for temporary files), prunes
// it to half, measures each step in a process of its own, and deletes everything. Needs 2.6 times its size of disk.
// Exits with 1 when pruning peaks at three of its largest tensors plus 200 MB or more, or takes more than twice the time
// that cp takes for as many bytes read and written.
import { execFileSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { applyPlan, inspectModel, loadModel, predictOutput } from "@coppice/checkpoint";
import { folderTarget, openFolder, writeSyntheticCheckpoint } from "@coppice/checkpoint/node";
import { createPlan, moeLayers, planFromScores, Rng } from "@coppice/core";

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    step: { type: "string" },
    gigabytes: { type: "string", default: "12" },
    "shard-gigabytes": { type: "string", default: "3" },
    form: { type: "string", default: "separate" },
    merge: { type: "boolean", default: false },
    units: { type: "boolean", default: false },
  },
});

const forms = {
  separate: { family: "mixtral" },
  fused: { family: "mixtral", fused: true },
  fp8: {
    family: "deepseek_v3",
    quantized: "fp8",
    config: { first_k_dense_replace: 0, n_group: 1, topk_group: 1, q_lora_rank: null },
  },
  mxfp4: { family: "gpt_oss", quantized: "mxfp4" },
};

const layerSize = {
  hiddenSize: 2048,
  heads: 16,
  kvHeads: 8,
  experts: 8,
  topK: 2,
  expertWidth: 4096,
  vocabSize: 32_000,
};

function modelSize() {
  const form = forms[options.form];
  if (!form) throw new Error(`--form is ${options.form}, expected one of ${Object.keys(forms).join(", ")}`);
  const { experts, hiddenSize, expertWidth } = layerSize;
  const bytesPerValue = form.quantized === "fp8" ? 1 : form.quantized === "mxfp4" ? 17 / 32 : 2;
  const layerBytes = experts * 3 * hiddenSize * expertWidth * bytesPerValue;
  return {
    ...form,
    ...layerSize,
    layers: Math.max(1, Math.round((Number(options.gigabytes) * 1e9) / layerBytes)),
    maxShardBytes: Number(options["shard-gigabytes"]) * 1e9,
    seed: 1,
  };
}

/** Highest resident memory of this process so far, in MB. */
function peakMemory() {
  // maxRSS counts what the parent had before the fork on some kernels; VmHWM is this program's own.
  try {
    return Number(/VmHWM:\s+(\d+) kB/.exec(readFileSync("/proc/self/status", "utf8"))[1]) / 1024;
  } catch {
    return process.resourceUsage().maxRSS / 1024;
  }
}

async function timed(work) {
  const start = performance.now();
  const value = await work();
  return { value, seconds: (performance.now() - start) / 1000 };
}

function throughput(bytesRead, bytesWritten, seconds) {
  return { bytesRead, bytesWritten, gigabytesPerSecond: (bytesRead + bytesWritten) / seconds / 1e9 };
}

/** An expert with another whose hidden units are permuted. */
function aligned(rng, expert, other) {
  const width = layerSize.expertWidth;
  const same = Array.from({ length: width }, (_, unit) => unit);
  return [
    { expert, to: same, rows: 0.75, columns: 0.75 },
    { expert: other, to: rng.sample(width, width), rows: 0.25, columns: 0.25 },
  ].sort((a, b) => a.expert - b.expert);
}

const steps = {
  make: async (folder) => {
    await writeSyntheticCheckpoint(folder, modelSize());
    return {};
  },
  inspect: async (folder) => {
    const { value, seconds } = await timed(async () => {
      const checkpoint = await loadModel(await openFolder(folder));
      const inspection = await inspectModel(checkpoint);
      await checkpoint.close();
      return inspection;
    });
    const { parameters, activeParameters, bytes, largestTensor, shards } = value;
    return { seconds, parameters, activeParameters, bytes, largestTensor, shards: shards.length };
  },
  prune: async (folder, out) => {
    const { merge, units } = options;
    const checkpoint = await loadModel(await openFolder(folder));
    const { model } = checkpoint;
    const rng = Rng.fromSeed(1);
    const scores = moeLayers(model).map(({ feedForward }) => feedForward.experts.map(() => rng.uniform()));
    let plan = planFromScores(model, scores, layerSize.experts / 2);
    if (merge || units) {
      const layers = plan.layers.map((layer) => {
        const dropped = scores[0]
          .map((_, expert) => expert)
          .filter((expert) => !layer.experts.includes(expert));
        if (units)
          return { ...layer, units: layer.experts.map((expert, i) => aligned(rng, expert, dropped[i])) };
        const rows = layer.experts.map((expert, slot) =>
          scores[0].map((_, other) => (other === expert ? 0.75 : other === dropped[slot] ? 0.25 : 0)),
        );
        return { ...layer, merge: rows };
      });
      plan = createPlan(model, layers);
    }
    const predicted = await predictOutput(checkpoint, plan);
    const { seconds } = await timed(() => applyPlan(checkpoint, plan, folderTarget(out)));
    for (const { name, bytes } of predicted.files) {
      const written = statSync(join(out, name)).size;
      if (written !== bytes) throw new Error(`${name} has ${written} bytes, predicted were ${bytes}`);
    }
    await checkpoint.close();
    const read = predicted.tensorBytes * (merge || units ? 2 : 1);
    return { seconds, ...throughput(read, predicted.bytes, seconds) };
  },
  verify: async (folder) => {
    const checkpoint = await loadModel(await openFolder(folder));
    const { experts } = await inspectModel(checkpoint);
    await checkpoint.close();
    return { experts };
  },
};

/** Runs a step in a process of its own, so that its memory is its own. */
function run(step, ...args) {
  const script = fileURLToPath(import.meta.url);
  const own = process.argv.slice(2).filter((arg) => !positionals.includes(arg));
  const output = execFileSync(process.execPath, [script, "--step", step, ...own, ...args], {
    encoding: "utf8",
    stdio: ["ignore", "pipe", "inherit"],
  });
  const result = JSON.parse(output);
  console.log(step.padEnd(16), JSON.stringify(result));
  return result;
}

/** Copies the model, makes the copy durable as prune does, and deletes it. */
function copy(label, from, to) {
  const start = performance.now();
  execFileSync("sh", ["-c", `cp -r "${from}" "${to}" && sync -f "${to}"`]);
  const seconds = (performance.now() - start) / 1000;
  const bytes = readdirSync(to).reduce((sum, name) => sum + statSync(join(to, name)).size, 0);
  rmSync(to, { recursive: true });
  const result = { seconds, ...throughput(bytes, bytes, seconds) };
  console.log(label.padEnd(16), JSON.stringify(result));
  return result;
}

if (options.step) {
  const result = await steps[options.step](...positionals);
  console.log(JSON.stringify({ ...result, peakMegabytes: Math.round(peakMemory()) }));
} else {
  const base = mkdtempSync(join(positionals[0] ?? tmpdir(), "coppice-large-"));
  try {
    const [model, pruned, copied] = ["model", "pruned", "copied"].map((name) => join(base, name));
    run("make", model);
    const { largestTensor } = run("inspect", model);
    // The same bytes under the same conditions: whether the system still holds the model in memory decides a lot.
    const before = copy("cp", model, copied);
    const { seconds, bytesRead, bytesWritten, peakMegabytes } = run("prune", model, pruned);
    const after = copy("cp again", model, copied);
    run("verify", pruned);
    const memoryLimit = (3 * largestTensor.bytes) / 1e6 + 200;
    const speed = (before.gigabytesPerSecond + after.gigabytesPerSecond) / 2;
    const timeLimit = (2 * (bytesRead + bytesWritten)) / 1e9 / speed;
    const verdict = (value, limit) =>
      `${value.toFixed(1)} of ${limit.toFixed(1)} ${value < limit ? "ok" : "TOO MUCH"}`;
    console.log("peak MB         ", verdict(peakMegabytes, memoryLimit));
    console.log("seconds         ", verdict(seconds, timeLimit));
    if (peakMegabytes >= memoryLimit || seconds >= timeLimit) process.exitCode = 1;
  } finally {
    rmSync(base, { recursive: true, force: true });
  }
}
