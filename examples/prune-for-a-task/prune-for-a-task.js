// Shrinks the model that ships with Coppice for one task: 4 of 8 experts per layer stay.
// Usage: node prune-for-a-task.js [output folder, which must not exist]
import { readFile } from "node:fs/promises";
import { applyPlan, loadModel } from "@coppice/checkpoint";
import { folderTarget, openFolder } from "@coppice/checkpoint/node";
import { modelSize, planFromScores, Rng } from "@coppice/core";
import { reap } from "@coppice/criteria";
import { modelPath, taskPath } from "@coppice/demo-model";
import { calibrationSequences, limitTask, loadTokenizer, parseTask } from "@coppice/evaluate";
import { createModelPool } from "@coppice/executor-local";
import { runSearch } from "@coppice/search";
import { eep } from "@coppice/search-eep";

const out = process.argv[2] ?? "./pruned";
const keep = 4;
const evaluations = 60;
const backend = { module: import.meta.resolve("@coppice/backend-cpu") };

// Load. Opening reads headers; the weights go into worker processes, so that this one stays free.
const checkpoint = await loadModel(await openFolder(modelPath));
const { model, weights, folder } = checkpoint;
const pool = await createModelPool({ model: modelPath, backend });

// Samples to search on, and others to judge by.
const search = limitTask(parseTask(await readFile(taskPath("arith", "search"), "utf8"), "arith"), 100);
const holdout = limitTask(parseTask(await readFile(taskPath("arith", "dev"), "utf8"), "arith"), 100);

// Calibrate, and score the experts by a criterion.
const statistics = await pool.collectStatistics({ task: search });
const rng = Rng.fromSeed(1);
const criterion = await reap.create({}, undefined);
const scores = await criterion.score({ model, weights, statistics, rng });
const oneShot = planFromScores(model, scores, keep);

// Search a little, starting from the criterion.
const executor = await pool.scorer({ task: search });
const strategy = await eep.create({ keep }, { model, rng, evaluations, scores: new Map([["reap", scores]]) });
const { best } = await runSearch({ strategy, model, executor, evaluations });
const { plan } = best.candidate;
await executor.dispose();

// Compare on samples that decided nothing.
for (const [name, candidate] of /** @type {const} */ ([
  ["full model", undefined],
  ["REAP", oneShot],
  ["EEP", plan],
])) {
  const { value, low, high } = await pool.evaluateTask({
    task: holdout,
    ...(candidate && { plan: candidate }),
  });
  console.log(`${name.padEnd(10)}  ${value.toFixed(3)} (${low.toFixed(3)} to ${high.toFixed(3)})`);
}

// Apply: an ordinary checkpoint with fewer experts.
await applyPlan(checkpoint, plan, folderTarget(out));
const [before, after] = [modelSize(model), modelSize(model, plan)];
console.log(`${out}: ${(after.bytes / 1e6).toFixed(1)} MB of ${(before.bytes / 1e6).toFixed(1)} MB`);

// Verify: the original under the plan and the new checkpoint as it is give the same logits.
const smallPool = await createModelPool({ model: out, backend, workers: 1 });
const tokenizer = await loadTokenizer(folder);
const prompts = calibrationSequences(holdout, { model, tokenizer, limit: 8 });
const expected = await pool.logits(prompts, { plan, all: true });
const actual = await smallPool.logits(prompts, { all: true });
let difference = 0;
expected.forEach((rows, sequence) => {
  rows.forEach((row, position) => {
    row.forEach((value, token) => {
      difference = Math.max(
        difference,
        Math.abs(value - (actual[sequence]?.[position]?.[token] ?? Number.NaN)),
      );
    });
  });
});
console.log(`largest difference of logits: ${difference.toExponential(1)}`);

await smallPool.dispose();
await pool.dispose();
await checkpoint.close();
process.exitCode = difference <= 1e-4 ? 0 : 1;
