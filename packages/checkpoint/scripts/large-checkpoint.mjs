// Shows that a checkpoint far larger than memory rules allow is inspected at once and pruned by streaming.
//
//   node packages/checkpoint/scripts/large-checkpoint.mjs [folder] [--merge]
//
// Makes a Mixtral checkpoint of 3,500 million random bf16 parameters (7 GB) in a new folder below `folder` (default:
// the system's folder for temporary files), measures each step in a process of its own, and deletes everything.
// Needs 18 GB of disk. With --merge, every kept expert is a merge of two.
import { execFileSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { applyPlan, inspectModel, loadModel, predictOutput } from "@coppice/checkpoint";
import { folderTarget, openFolder, writeSyntheticCheckpoint } from "@coppice/checkpoint/node";
import { createPlan, moeLayers, planFromScores, Rng } from "@coppice/core";

const size = {
  family: "mixtral",
  layers: 16,
  hiddenSize: 2048,
  vocabSize: 32_000,
  heads: 16,
  kvHeads: 8,
  experts: 8,
  topK: 2,
  expertWidth: 4096,
  seed: 1,
};

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

const steps = {
  make: async (folder) => {
    await writeSyntheticCheckpoint(folder, size);
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
  prune: async (folder, out, merge) => {
    const checkpoint = await loadModel(await openFolder(folder));
    const { model } = checkpoint;
    const rng = Rng.fromSeed(1);
    const scores = moeLayers(model).map(({ feedForward }) => feedForward.experts.map(() => rng.uniform()));
    let plan = planFromScores(model, scores, size.experts / 2);
    if (merge) {
      const layers = plan.layers.map((layer) => {
        const dropped = scores[0]
          .map((_, expert) => expert)
          .filter((expert) => !layer.experts.includes(expert));
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
    const read = predicted.tensorBytes * (merge ? 2 : 1);
    return {
      seconds,
      bytesWritten: predicted.bytes,
      gigabytesPerSecond: (read + predicted.bytes) / seconds / 1e9,
    };
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
  const output = execFileSync(process.execPath, [fileURLToPath(import.meta.url), "--step", step, ...args], {
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
  const gigabytesPerSecond = (2 * bytes) / seconds / 1e9;
  console.log(label.padEnd(16), JSON.stringify({ seconds, bytesWritten: bytes, gigabytesPerSecond }));
}

if (process.argv[2] === "--step") {
  const [, , , step, ...args] = process.argv;
  const result = await steps[step](...args);
  console.log(JSON.stringify({ ...result, peakMegabytes: Math.round(peakMemory()) }));
} else {
  const options = process.argv.slice(2);
  const merge = options.includes("--merge");
  const base = mkdtempSync(
    join(options.find((option) => !option.startsWith("--")) ?? tmpdir(), "coppice-large-"),
  );
  try {
    const [model, pruned, copied] = ["model", "pruned", "copied"].map((name) => join(base, name));
    run("make", model);
    run("inspect", model);
    // The same bytes under the same conditions: whether the system still holds the model in memory decides a lot.
    copy("cp", model, copied);
    run("prune", model, pruned, ...(merge ? ["merge"] : []));
    copy("cp again", model, copied);
    run("verify", pruned);
  } finally {
    rmSync(base, { recursive: true, force: true });
  }
}
