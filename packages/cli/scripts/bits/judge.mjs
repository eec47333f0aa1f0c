import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { cpu } from "@coppice/backend-cpu";
import { loadModel } from "@coppice/checkpoint";
import { openFolder } from "@coppice/checkpoint/node";
import { createRegistry } from "@coppice/core";
import { modelPath, taskPath } from "@coppice/demo-model";
import { divergence, encodeTask, loadTokenizer, parseTask, scoreSamples } from "@coppice/evaluate";
import { awq, gptq, hqq, rtn } from "@coppice/quantizers";

export const tasks = ["arith", "extract", "json", "recall", "sort", "translate"];
/** Holdout samples of every task that KL is of. */
const compared = 8;
/** Search samples of every task that quantizers learn from. */
const calibrated = 40;
const cli = fileURLToPath(new URL("../../dist/bin.js", import.meta.url));

/** The demo model, what judges its descendants on `samples` holdout samples of every task, and a place for those. */
export async function openBench({ samples }) {
  const registry = createRegistry([cpu, rtn, hqq, gptq, awq]);
  const backend = await registry.create("backend", "cpu", { threads: 2 }, undefined);
  const folder = mkdtempSync(join(tmpdir(), "coppice-check-bits-"));
  const whole = await loadModel(await openFolder(modelPath));
  const tokenizer = await loadTokenizer(whole.folder);
  const read = (split, limit) =>
    Promise.all(
      tasks.map(async (name) => {
        const task = parseTask(readFileSync(taskPath(name, split), "utf8"), name);
        return encodeTask(task, { tokenizer, model: whole.model, limit });
      }),
    );
  const holdout = await read("dev", Math.max(samples, compared));
  const probes = sequencesOf(holdout, compared);
  /** Logits of the demo model. */
  let teacher;

  /** Runs a checkpoint on the holdout samples: exact match of every task, their mean, and KL from the demo model. */
  async function judge({ model, weights }) {
    const runner = await backend.load({ model, weights });
    try {
      const { logits } = await runner.run(probes);
      teacher ??= logits;
      const { vocabSize } = model;
      let kl = 0;
      for (let at = 0; at < logits.length; at += vocabSize) {
        kl += divergence(teacher.subarray(at, at + vocabSize), logits.subarray(at, at + vocabSize));
      }
      const shares = [];
      for (const task of holdout) {
        const { scores } = await scoreSamples({ runner, tokenizer, task, metric: "exact-match-tokens" });
        shares.push(scores.reduce((a, b) => a + b, 0) / scores.length);
      }
      const mean = shares.reduce((a, b) => a + b, 0) / shares.length;
      return { kl: (kl * vocabSize) / logits.length, shares, mean };
    } finally {
      await runner.dispose();
    }
  }

  const mixed = join(folder, "mix.jsonl");
  const lines = tasks.map((name) => readFileSync(taskPath(name, "search"), "utf8").split("\n"));
  // In turns, so that the first ones are of all tasks.
  const inTurns = Array.from({ length: calibrated }, (_, i) => lines.map((one) => one[i]));
  writeFileSync(mixed, `${inTurns.flat().join("\n")}\n`);
  const head = (title) =>
    console.log(
      `\n${title.padEnd(40)}  MB       KL      mean   ${tasks.map((task) => task.padEnd(9)).join("  ")}`,
    );
  /** Judges a checkpoint and prints it. @param bytes those of its weights, or of all files */
  const show = async (name, loaded, bytes) => {
    const found = await judge(loaded);
    const { kl, mean, shares } = found;
    const cells = [kl.toFixed(4), mean.toFixed(3), ...shares.map((share) => share.toFixed(2).padEnd(9))];
    console.log([name.padEnd(40), (bytes / 1e6).toFixed(2).padEnd(7), ...cells].join("  "));
    return { ...found, bytes };
  };
  head(`exact match of ${samples} unseen samples each`);
  const stored = [...whole.tensors.values()].reduce((sum, { begin, end }) => sum + end - begin, 0);
  const full = await show("as it is", whole, stored);
  let failed = false;
  return {
    whole,
    full,
    backend,
    head,
    quantizer: (name) => registry.create("quantizer", name, {}, undefined),
    /** Sequences and positions of search samples. */
    probes: async (count) => sequencesOf(await read("search", count), count),
    /** A file with search samples of all tasks. */
    mixed,
    place: (name) => join(folder, name.replaceAll(/\W+/g, "-")),
    /** Judges a checkpoint in a folder and prints it. */
    async showFolder(name, path, bytes) {
      const loaded = await loadModel(await openFolder(path));
      try {
        return await show(name, loaded, bytes);
      } finally {
        await loaded.close();
      }
    },
    demand(ok, what) {
      failed ||= !ok;
      console.log(`${ok ? "reached" : "MISSED "}  ${what}`);
    },
    failed: () => failed,
    async close() {
      await whole.close();
      rmSync(folder, { recursive: true, force: true });
    },
  };
}

function sequencesOf(encoded, count) {
  const all = encoded.flatMap(({ samples }) => samples.slice(0, count).flatMap(({ sequences }) => sequences));
  return { sequences: all.map(({ ids }) => ids), positions: all.map(({ positions }) => positions) };
}

/** What the command prints as JSON. */
export function coppice(...args) {
  const { status, stdout, stderr } = spawnSync(process.execPath, [cli, ...args, "--json", "--quiet"], {
    encoding: "utf8",
    maxBuffer: 1e9,
  });
  if (status !== 0) throw new Error(stderr);
  return JSON.parse(stdout);
}
