// Kills a search with SIGKILL at random moments, lets it go on each time, and checks that nothing was lost, nothing was done
// twice, and the result is that of a search that nobody interrupted.
//
//   npm run check:kills -- [kills, default 200] [seed, default 1]
//
// Makes a small untrained model, and searches it in new run folders, one after the other, until so many kills are done. Exits
// with 1 at the first difference.
import { spawn } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { writeSyntheticCheckpoint } from "@coppice/checkpoint/node";
import { Rng } from "@coppice/core";
import { letterTokenizer } from "./letter-tokenizer.mjs";

const wanted = Number(process.argv[2] ?? 200);
const rng = Rng.fromSeed(Number(process.argv[3] ?? 1));
const bin = fileURLToPath(new URL("../dist/bin.js", import.meta.url));
const work = mkdtempSync(join(tmpdir(), "coppice-kills-"));
process.on("exit", () => rmSync(work, { recursive: true, force: true }));

const model = join(work, "model");
await writeSyntheticCheckpoint(model, {
  family: "mixtral",
  layers: 4,
  hiddenSize: 64,
  heads: 4,
  kvHeads: 2,
  experts: 8,
  topK: 2,
  expertWidth: 128,
  vocabSize: 256,
  seed: 1,
});
writeFileSync(join(model, "tokenizer.json"), JSON.stringify(letterTokenizer()));
const samples = Rng.fromSeed(2);
const task = writeTask("task.jsonl", 60);
const holdout = writeTask("holdout.jsonl", 40);

const { life: first, milliseconds } = await timed(() => live("whole"));
if (first.killed) throw new Error("the search that should end was killed");
const whole = { ...outcome("whole"), journal: readJournal("whole") };
const planned = new Set(whole.journal.map(idOf));
// All samples have equally many tokens, so that the work done and avoided tells how many of them were scored.
const { tokenLayers, avoidedTokenLayers } = first.result.work;
const perSample = (tokenLayers + avoidedTokenLayers) / newSamples([], whole.journal);
console.log(`uninterrupted     ${(milliseconds / 1000).toFixed(1)} s, ${planned.size} scores of plans`);

const totals = { kills: 0, runs: 0, scored: 0, torn: 0 };
const stages = new Map();
while (totals.kills < wanted) {
  const out = `run-${totals.runs++}`;
  let before = [];
  for (let ended = false; !ended; ) {
    // Anywhere within the length of a whole run, so that every part of it is hit, the start of the process included.
    const moment = totals.kills < wanted ? rng.uniform() * milliseconds : undefined;
    const life = await live(out, moment);
    ended = !life.killed;
    const after = readJournal(out);
    checkLife(out, life, before, after);
    before = after;
    if (ended) continue;
    totals.kills++;
    const stage = stageOf(after);
    stages.set(stage, (stages.get(stage) ?? 0) + 1);
  }
  const { work: again } = (await live(out)).result;
  if (again.tokenLayers !== 0)
    fail(out, `a finished run computed ${again.tokenLayers} token-layers when it was repeated`);
  if (before.length !== whole.journal.length) {
    fail(
      out,
      `its journal has ${before.length} records, that of the uninterrupted run ${whole.journal.length}`,
    );
  }
  const found = outcome(out);
  if (found.plan !== whole.plan) fail(out, "its plan differs");
  if (found.result !== whole.result) fail(out, "its result differs");
  rmSync(join(work, out), { recursive: true });
}
console.log(`kills             ${totals.kills}, in ${totals.runs} runs that were all finished`);
for (const [stage, count] of [...stages].sort()) console.log(`  ${stage.padEnd(24)}${count}`);
console.log(`scores of plans   ${totals.scored} journalled, each once per run; 0 lost`);
console.log(`torn last lines   ${totals.torn}, dropped`);
console.log(
  `plan and result   the same in all ${totals.runs} runs; repeating a finished run computes nothing`,
);

/** One process that searches in the run folder `out`, killed after so many milliseconds unless it ends before. */
async function live(out, killAfter) {
  const args = ["search", model, "--task", task, "--holdout", holdout, "--keep", "4", "--limit", "32"];
  args.push(
    "--budget",
    "48",
    "--objective",
    "log-likelihood",
    "--metric",
    "log-likelihood",
    "--workers",
    "1",
  );
  args.push("--out", join(work, out), "--json", "--log-format", "json");
  const child = spawn(process.execPath, [bin, ...args], { stdio: ["ignore", "pipe", "pipe"] });
  const timer = killAfter === undefined ? undefined : setTimeout(() => child.kill("SIGKILL"), killAfter);
  const [stdout, stderr, [code, signal]] = await Promise.all([
    text(child.stdout),
    text(child.stderr),
    new Promise((resolve) => child.on("close", (...how) => resolve(how))),
  ]);
  clearTimeout(timer);
  const killed = signal === "SIGKILL";
  if (!killed && code !== 0) fail(out, `the search ended with ${code}: ${stderr.slice(-2000)}`);
  const events = stderr
    .split("\n")
    .slice(0, -1)
    .map((line) => JSON.parse(line));
  // What the process said it had scored, and had not from the journal.
  const scored = events.filter(({ event, cached }) => event === "candidate" && !cached).map(({ key }) => key);
  return { killed, scored, ...(!killed && { result: JSON.parse(stdout) }) };
}

async function text(stream) {
  let all = "";
  for await (const part of stream.setEncoding("utf8")) all += part;
  return all;
}

async function timed(run) {
  const start = performance.now();
  return { life: await run(), milliseconds: performance.now() - start };
}

/** What one process did to the journal. */
function checkLife(out, { scored, result }, before, after) {
  before.forEach((record, i) => {
    if (JSON.stringify(after[i]) !== JSON.stringify(record))
      fail(out, `record ${i} of its journal was lost or changed`);
  });
  const ids = after.map(idOf);
  const twice = ids.find((id, i) => ids.indexOf(id) !== i);
  if (twice !== undefined) fail(out, `${twice} was evaluated twice`);
  const foreign = ids.find((id) => !planned.has(id));
  if (foreign !== undefined) fail(out, `${foreign} was evaluated, which the uninterrupted run did not`);
  const journalled = new Set(after.filter(({ scope }) => scope === "search").map(({ key }) => key));
  const lost = scored.find((key) => !journalled.has(key));
  if (lost !== undefined) fail(out, `${lost} was scored, and is not in the journal`);
  if (result) {
    const counted = result.work.tokenLayers + result.work.avoidedTokenLayers;
    const needed = perSample * newSamples(before, after);
    if (counted !== needed)
      fail(out, `its work is ${counted} token-layers, done and avoided, where ${needed} were left`);
  }
  totals.scored += after.length - before.length;
}

/** Samples that the search scored from one journal to the next; a race that goes on has its earlier ones from before. */
function newSamples(before, after) {
  const known = new Map(
    before.filter(({ scope }) => scope === "search").map(({ key, scores }) => [key, scores.length]),
  );
  let count = 0;
  for (const { scope, key, scores } of after.slice(before.length)) {
    if (scope !== "search") continue;
    count += scores.length - (known.get(key) ?? 0);
    known.set(key, scores.length);
  }
  return count;
}

function idOf(record) {
  const { type, scope, key, id, race } = record;
  if (type === "measured") return `measured ${id}`;
  return `${scope} ${key}${race ? ` up to part ${race.known}` : ""}`;
}

/** The whole records of a run's journal, without the one that says which run it is. */
function readJournal(out) {
  const path = join(work, out, "journal.jsonl");
  if (!existsSync(path)) return [];
  const lines = readFileSync(path, "utf8").split("\n");
  // A process that dies in a write leaves a line without its end.
  if (lines.pop() !== "") totals.torn++;
  return lines.slice(1).map((line) => JSON.parse(line).record);
}

/** How far a run had come when it was killed. */
function stageOf(journal) {
  const last = journal.at(-1);
  if (!last) return "before the first score";
  if (last.type === "measured") return "measuring the result";
  return last.scope === "search" ? "searching" : "choosing";
}

/** What must be equal however often a run was interrupted. */
function outcome(out) {
  const {
    seconds: _,
    searching: __,
    work: ___,
    ...result
  } = JSON.parse(readFileSync(join(work, out, "result.json"), "utf8"));
  return { result: JSON.stringify(result), plan: readFileSync(join(work, out, "plan.json"), "utf8") };
}

/** Random letters to continue by random letters. */
function writeTask(name, count) {
  const letters = (length) =>
    Array.from({ length }, () => String.fromCharCode(97 + samples.integer(26))).join("");
  const lines = Array.from({ length: count }, () =>
    JSON.stringify({ prompt: letters(24), answer: letters(8) }),
  );
  const path = join(work, name);
  writeFileSync(path, `${lines.join("\n")}\n`);
  return path;
}

function fail(out, what) {
  console.error(`${out}, after ${totals.kills} kills: ${what}`);
  process.exit(1);
}
