// Slow check of evaluation: a model on all holdout tasks of the demo, in tokens and in text.
// Usage: npm run check:eval [-- <model folder>]; default: the demo model, whose figures are known to the sample.
import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { modelPath, taskNames, taskPath } from "@coppice/demo-model";

/** Share of right answers, every token the expected one, measured with the model's training code: 300 samples each. */
const known = {
  arith: 0.863,
  translate: 0.787,
  geo: 0.783,
  g2p: 0.38,
  sort: 0.627,
  extract: 0.973,
  json: 0.87,
  recall: 0.987,
};
const cli = fileURLToPath(new URL("../dist/bin.js", import.meta.url));
const [model = modelPath] = process.argv.slice(2);

let failed = false;
console.log("task       tokens  known  text   samples");
for (const task of taskNames) {
  const tokens = evaluate(task, "exact-match-tokens");
  const text = evaluate(task, "exact-match");
  const expected = model === modelPath ? known[task] : undefined;
  // Rounded figures of 300 samples differ by 0.0033 when one sample does.
  const ok = expected === undefined || Math.abs(tokens.value - expected) < 0.001;
  failed ||= !ok;
  console.log(
    [
      task.padEnd(11),
      tokens.value.toFixed(3).padEnd(8),
      (expected?.toFixed(3) ?? "").padEnd(7),
      text.value.toFixed(3).padEnd(7),
      String(tokens.samples).padEnd(8),
      ok ? "" : "DIFFERS",
    ].join(""),
  );
}
process.exit(failed ? 1 : 0);

function evaluate(task, metric) {
  const args = [cli, "eval", model, "--task", taskPath(task, "dev"), "--metric", metric, "--json", "--quiet"];
  const { status, stdout } = spawnSync(process.execPath, args, {
    stdio: ["ignore", "pipe", "inherit"],
    maxBuffer: 2 ** 28,
  });
  if (status !== 0) throw new Error(`eval of ${task} ended with exit code ${status}`);
  return JSON.parse(stdout.toString());
}
