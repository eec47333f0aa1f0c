// Slow check of search quality: EEP on the demo model, judged on samples that decided nothing.
// Usage: npm run check:search [-- <case> ...], where a case is <task>:<keep>; default: all below.
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { modelPath, taskPath } from "@coppice/demo-model";

/** Least share of the full model's holdout score, as the mean over seeds. */
const cases = [
  { task: "arith", keep: 4, seeds: [1, 2, 3], least: 0.88 },
  { task: "arith", keep: 2, seeds: [1, 2, 3], least: 0.66 },
  { task: "extract", keep: 4, seeds: [1], least: 0.81 },
];
const budget = { pruneEvaluations: 300, mergeEvaluations: 400 };

const wanted = process.argv.slice(2);
const chosen = cases.filter(({ task, keep }) => wanted.length === 0 || wanted.includes(`${task}:${keep}`));
if (chosen.length === 0) {
  console.error(`No such case. Known: ${cases.map(({ task, keep }) => `${task}:${keep}`).join(", ")}.`);
  process.exit(2);
}
const folder = mkdtempSync(join(tmpdir(), "coppice-check-search-"));
const cli = fileURLToPath(new URL("../dist/bin.js", import.meta.url));
let failed = false;
try {
  console.log("task     keep  seed  search  holdout  full  share  least  evaluations  work avoided  minutes");
  for (const { task, keep, seeds, least } of chosen) {
    const shares = seeds.map((seed) => {
      const result = search(task, keep, seed);
      const share = result.holdout.value / result.full.holdout.value;
      const { tokenLayers, avoidedTokenLayers } = result.work;
      console.log(
        [
          task.padEnd(9),
          String(keep).padEnd(6),
          String(seed).padEnd(6),
          result.best.value.toFixed(3).padEnd(8),
          result.holdout.value.toFixed(3).padEnd(9),
          result.full.holdout.value.toFixed(3).padEnd(6),
          share.toFixed(3).padEnd(7),
          "".padEnd(7),
          String(result.evaluations).padEnd(13),
          `${((100 * avoidedTokenLayers) / (tokenLayers + avoidedTokenLayers)).toFixed(0)} %`.padEnd(14),
          (result.seconds / 60).toFixed(1),
        ].join(""),
      );
      return share;
    });
    const mean = shares.reduce((sum, share) => sum + share, 0) / shares.length;
    const ok = mean >= least;
    failed ||= !ok;
    console.log(
      `${`${task} keep ${keep}`.padEnd(45)}${mean.toFixed(3)}  ${least.toFixed(2)}   ${ok ? "reached" : "MISSED"}`,
    );
  }
} finally {
  rmSync(folder, { recursive: true, force: true });
}
process.exit(failed ? 1 : 0);

/** One search of 200 samples; the whole object that `--json` prints. */
function search(task, keep, seed) {
  const args = [cli, "search", modelPath, "--strategy", "eep", "--keep", String(keep), "--limit", "200"];
  args.push("--task", taskPath(task, "search"), "--holdout", taskPath(task, "dev"), "--seed", String(seed));
  args.push("--budget", String(budget.pruneEvaluations + budget.mergeEvaluations));
  for (const [key, value] of Object.entries(budget)) args.push("--set", `${key}=${value}`);
  args.push("--out", join(folder, `${task}-${keep}-${seed}`), "--json", "--quiet");
  const { status, stdout } = spawnSync(process.execPath, args, {
    stdio: ["ignore", "pipe", "inherit"],
    maxBuffer: 2 ** 28,
  });
  if (status !== 0) throw new Error(`the search of ${task} ended with exit code ${status}`);
  return JSON.parse(stdout.toString());
}
