// Slow check of search quality: the demo model, judged on samples that decided nothing.
// Usage: npm run check:search [-- <case> ...], where a case is <task>:<keep>; default: all below.
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { loadModel } from "@coppice/checkpoint";
import { openFolder } from "@coppice/checkpoint/node";
import { modelPath, taskPath } from "@coppice/demo-model";
import { encodeTask, loadTokenizer, parseTask } from "@coppice/evaluate";

/** Least share of the full model's holdout score, as the mean over seeds. */
const cases = [
  { task: "extract", keep: 4, seeds: [1], least: 0.89 },
  { task: "extract", keep: 2, seeds: [1], least: 0.51 },
  { task: "arith", keep: 4, seeds: [1, 2, 3], least: 0.95 },
  { task: "arith", keep: 2, seeds: [1, 2, 3], least: 0.78 },
  { task: "recall", keep: 4, seeds: [1], least: 0.99 },
  { task: "recall", keep: 2, seeds: [1], least: 0.8 },
  { task: "json", keep: 4, seeds: [1], least: 0.75 },
  { task: "json", keep: 2, seeds: [1], least: 0.42 },
  { task: "translate", keep: 4, seeds: [1, 2, 3], least: 0.51 },
  { task: "translate", keep: 2, seeds: [1, 2, 3], least: 0.12 },
  { task: "sort", keep: 4, seeds: [1, 2, 3], least: 0.68 },
  { task: "sort", keep: 2, seeds: [1, 2, 3], least: 0.03 },
];
const budget = 200;
const samples = 200;
/** What work is compared with: so many evaluations of all samples through all layers. */
const naivePlans = 700;

const wanted = process.argv.slice(2);
const chosen = cases.filter(({ task, keep }) => wanted.length === 0 || wanted.includes(`${task}:${keep}`));
if (chosen.length === 0) {
  console.error(`No such case. Known: ${cases.map(({ task, keep }) => `${task}:${keep}`).join(", ")}.`);
  process.exit(2);
}
const folder = mkdtempSync(join(tmpdir(), "coppice-check-search-"));
const cli = fileURLToPath(new URL("../dist/bin.js", import.meta.url));
const columns = [10, 6, 6, 8, 9, 7, 7, 8, 10, 7, 8];
const line = (...cells) =>
  console.log(
    cells
      .map((cell, i) => String(cell).padEnd(columns[i]))
      .join("")
      .trimEnd(),
  );
let failed = false;
try {
  line("task", "keep", "seed", "search", "holdout", "full", "before", "share", "over-fit", "work", "minutes");
  for (const { task, keep, seeds, least } of chosen) {
    const naive = naivePlans * (await tokenLayers(task));
    const shares = seeds.map((seed) => {
      const { best, holdout, full, baselines, work, seconds } = search(task, keep, seed);
      const share = holdout.value / full.holdout.value;
      const before = baselines.find(({ note }) => note === "before reconstruction");
      const overFit = best.value - holdout.value - (full.search.value - full.holdout.value);
      line(
        task,
        keep,
        seed,
        best.value.toFixed(3),
        holdout.value.toFixed(3),
        full.holdout.value.toFixed(3),
        before?.holdout.value.toFixed(3) ?? "",
        share.toFixed(3),
        overFit.toFixed(3),
        `${((100 * work.tokenLayers) / naive).toFixed(0)} %`,
        (seconds / 60).toFixed(1),
      );
      return share;
    });
    const mean = shares.reduce((sum, share) => sum + share, 0) / shares.length;
    const ok = mean >= least;
    failed ||= !ok;
    line(
      `${task} keep ${keep}`,
      "",
      "",
      "",
      "",
      "",
      "mean",
      mean.toFixed(3),
      `least ${least}`,
      "",
      ok ? "reached" : "MISSED",
    );
  }
} finally {
  rmSync(folder, { recursive: true, force: true });
}
process.exit(failed ? 1 : 0);

/** Tokens of the search samples times layers: what evaluating one plan costs when nothing is reused or left out. */
async function tokenLayers(task) {
  const checkpoint = await loadModel(await openFolder(modelPath));
  const { model } = checkpoint;
  const tokenizer = await loadTokenizer(checkpoint.folder);
  const file = taskPath(task, "search");
  const { samples: encoded } = encodeTask(parseTask(readFileSync(file, "utf8"), file), {
    model,
    tokenizer,
    limit: samples,
  });
  await checkpoint.close();
  return model.layers.length * encoded.reduce((sum, { sequences }) => sum + sequences[0].ids.length, 0);
}

/** One search; the whole object that `--json` prints. */
function search(task, keep, seed) {
  const args = [cli, "search", modelPath, "--keep", String(keep), "--limit", String(samples)];
  args.push("--task", taskPath(task, "search"), "--holdout", taskPath(task, "dev"), "--seed", String(seed));
  args.push("--budget", String(budget));
  args.push("--out", join(folder, `${task}-${keep}-${seed}`), "--json", "--quiet");
  const { status, stdout } = spawnSync(process.execPath, args, {
    stdio: ["ignore", "pipe", "inherit"],
    maxBuffer: 2 ** 28,
  });
  if (status !== 0) throw new Error(`the search of ${task} ended with exit code ${status}`);
  return JSON.parse(stdout.toString());
}
