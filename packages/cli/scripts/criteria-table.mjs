// Slow table: the best criterion of every task, chosen on search samples, and its plan with repaired routers, judged on
// samples that decided nothing.
//
//   npm run table:criteria -- [model folder ...] [options]
//
//   --keep <n>        experts that every layer keeps; default 4
//   --tasks <names>   separated by commas; default: all of the folder
//   --folder <path>   has search/<task>.jsonl and dev/<task>.jsonl; default: the tasks of the demo
//   --limit <n>       samples to calibrate and to choose on; default 200
//   --sample <n>      tokens of which experts are compared and routers are fitted; default 2048
//   --workers <n>     default: as many as `coppice eval` takes
//   --json <file>     writes all figures
//
// The default model is that of the demo, whose figures of a plain implementation are known; they are compared.
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { basename, join, resolve } from "node:path";
import { parseArgs } from "node:util";
import { loadModel } from "@coppice/checkpoint";
import { openFolder } from "@coppice/checkpoint/node";
import { modelPath, taskPath } from "@coppice/demo-model";
import { limitTask, parseTask } from "@coppice/evaluate";
import { createModelPool } from "@coppice/executor-local";
import { criterionNames, measureTask, shown } from "./criteria-task.mjs";

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    keep: { type: "string", default: "4" },
    tasks: { type: "string" },
    folder: { type: "string", default: resolve(taskPath("arith", "search"), "../..") },
    limit: { type: "string", default: "200" },
    sample: { type: "string", default: "2048" },
    workers: { type: "string" },
    json: { type: "string" },
  },
});
const keep = Number(options.keep);
const tasks =
  options.tasks?.split(",") ??
  readdirSync(join(options.folder, "search"))
    .filter((name) => name.endsWith(".jsonl"))
    .map((name) => basename(name, ".jsonl"))
    .sort();

/**
 * Exact match, in percent, of the demo model on 300 unseen samples per task with 4 experts left, measured with other code. Those of
 * arith, translate, geo and g2p are of an earlier draw of samples, so that shares of the full model's score compare.
 */
const known = {
  extract: { full: 98.7, frequency: 76.3, "soft-activation": 18.3, reap: 26 },
  arith: { full: 84.3, frequency: 55.3, "soft-activation": 70.7, reap: 67.7 },
  recall: { full: 98, frequency: 19.3, "soft-activation": 82, reap: 69 },
  json: { full: 82.7, frequency: 0.7, "soft-activation": 11.3, reap: 33 },
  translate: { full: 82, frequency: 16.7, "soft-activation": 21.7, reap: 30 },
  sort: { full: 66.3, frequency: 1, "soft-activation": 1.3, reap: 1.3 },
  geo: { full: 77.7, frequency: 17, "soft-activation": 23.3, reap: 21.7 },
  g2p: { full: 42.3, frequency: 0, "soft-activation": 8.7, reap: 8.7 },
};
const knownSamples = 300;

const figures = [];
for (const path of positionals.length > 0 ? positionals : [modelPath]) {
  await tabulate(path);
}

/** Measures all tasks with one model, which is loaded once, and prints each as soon as it is done. */
async function tabulate(path) {
  const checkpoint = await loadModel(await openFolder(path));
  const pool = await createModelPool({
    model: path,
    backend: { module: import.meta.resolve("@coppice/backend-cpu") },
    ...(options.workers !== undefined && { workers: Number(options.workers) }),
  });
  const model = path === modelPath ? "coppice-mixtral-27m" : basename(path);
  const results = [];
  figures.push({ model, keep, results });
  try {
    console.log(`\n${model}, ${keep} experts per layer, exact match on unseen samples\n`);
    head(
      "task",
      "full",
      "random",
      ...shown,
      "best criterion",
      "+ router repair",
      "repair adds",
      "more than reap",
    );
    for (const task of tasks) {
      const start = performance.now();
      const search = limitTask(read("search", task), Number(options.limit));
      const holdout = read("dev", task);
      const sampled = Number(options.sample);
      const result = await measureTask({ checkpoint, pool, keep, sampled, search, holdout });
      const seconds = (performance.now() - start) / 1000;
      results.push({ task, ...result, seconds });
      if (options.json !== undefined) writeFileSync(options.json, `${JSON.stringify(figures, null, 1)}\n`);
      console.log(taskRow(task, result));
      console.error(`${task} took ${seconds.toFixed(0)} s`);
    }
  } finally {
    await pool.dispose();
    await checkpoint.close();
  }
  console.log(`\n${model}, ${keep} experts per layer, exact match on the samples that were chosen on\n`);
  head("criterion", ...tasks);
  for (const criterion of criterionNames) {
    console.log(row(criterion, ...results.map(({ search }) => score(search.criteria[criterion].exactMatch))));
  }
  console.log(row("best + router repair", ...results.map(({ search }) => score(search.repaired.exactMatch))));
  if (path === modelPath && keep === 4) compare(results);
}

function read(split, task) {
  return parseTask(
    readFileSync(join(options.folder, split, `${task}.jsonl`), "utf8"),
    `${split}/${task}.jsonl`,
  );
}

function taskRow(task, { best, holdout, differences: { repairedOverBest, repairedOverReap } }) {
  return row(
    task,
    score(holdout.full),
    score(holdout.random.mean),
    ...shown.map((criterion) => score(holdout.criteria[criterion])),
    `${score(holdout.best)} ${best}`,
    score(holdout.repaired),
    difference(repairedOverBest),
    difference(repairedOverReap),
  );
}

/** Known figures, scaled by the full model's score here, beside those of this run. */
function compare(results) {
  console.log("\nKnown / here (standard errors between them)\n");
  head("task", ...shown);
  for (const { task, samples, holdout } of results) {
    const elsewhere = known[task];
    if (!elsewhere) continue;
    const cells = shown.map((criterion) => {
      const expected = (elsewhere[criterion] / elsewhere.full) * holdout.full;
      const here = holdout.criteria[criterion];
      // Of the difference of two shares, at their mean.
      const mean = (expected + here) / 2;
      const error = Math.sqrt(mean * (1 - mean) * (1 / knownSamples + 1 / samples.holdout));
      return `${score(expected)} / ${score(here)} (${signed(error === 0 ? 0 : (here - expected) / error, 1)})`;
    });
    console.log(row(task, ...cells));
  }
}

function head(...cells) {
  console.log(row(...cells));
  console.log(row(...cells.map(() => "---")));
}

function row(...cells) {
  return `| ${cells.join(" | ")} |`;
}

function score(value) {
  return value.toFixed(3);
}

function signed(value, digits = 3) {
  return `${value < 0 ? "" : "+"}${value.toFixed(digits)}`;
}

function difference({ value, low, high }) {
  return `${signed(value)} [${signed(low)}, ${signed(high)}]`;
}
