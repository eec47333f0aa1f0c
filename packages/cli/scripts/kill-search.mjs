// Kills a search again and again with SIGKILL, at random moments, and checks that it ends with the very result of a search
// that nobody interrupted. Usage, after a build:
//
//   node packages/cli/scripts/kill-search.mjs [kills, default 50] [seed, default 1]
import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { Rng } from "@coppice/core";
import { modelPath, taskPath } from "@coppice/demo-model";

const kills = Number(process.argv[2] ?? 50);
const rng = Rng.fromSeed(Number(process.argv[3] ?? 1));
const bin = fileURLToPath(new URL("../dist/bin.js", import.meta.url));
const work = mkdtempSync(join(tmpdir(), "coppice-kills-"));
process.on("exit", () => rmSync(work, { recursive: true, force: true }));

/** Runs the search; resolves with whether it ended by itself. */
function search(out, killAfterMs) {
  const args = [
    "search",
    modelPath,
    "--task",
    taskPath("arith", "search"),
    "--holdout",
    taskPath("arith", "dev"),
  ];
  args.push("--keep", "4", "--limit", "40", "--budget", "150", "--out", join(work, out), "--quiet");
  const child = spawn(process.execPath, [bin, ...args], { stdio: ["ignore", "ignore", "inherit"] });
  const timer = killAfterMs === undefined ? undefined : setTimeout(() => child.kill("SIGKILL"), killAfterMs);
  return new Promise((resolve, reject) => {
    child.on("close", (code, signal) => {
      clearTimeout(timer);
      if (signal === "SIGKILL") resolve(false);
      else if (code === 0) resolve(true);
      else reject(new Error(`the search ended with ${code}`));
    });
  });
}

function outcome(out) {
  const {
    seconds: _,
    work: __,
    ...result
  } = JSON.parse(readFileSync(join(work, out, "result.json"), "utf8"));
  return JSON.stringify([result, readFileSync(join(work, out, "plan.json"), "utf8")]);
}

const begin = performance.now();
await search("whole");
const length = performance.now() - begin;
console.log(`uninterrupted: ${(length / 1000).toFixed(1)} s`);
let done = 0;
let rounds = 0;
while (done < kills) {
  const out = `killed-${rounds++}`;
  let inThis = 0;
  // Long enough for a fresh process to get somewhere, short enough that several are needed.
  while (done < kills && !(await search(out, 500 + rng.uniform() * length * 0.4))) {
    done++;
    inThis++;
  }
  await search(out);
  if (outcome(out) !== outcome("whole")) {
    console.error(`round ${rounds}: after ${inThis} kills the result differs`);
    process.exit(1);
  }
  console.log(`round ${rounds}: ${inThis} kills, ${done} of ${kills} altogether, the same result`);
  rmSync(join(work, out), { recursive: true });
}
