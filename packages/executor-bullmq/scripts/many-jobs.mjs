// Many jobs over Redis in bad weather: a worker is killed every 5 seconds, Redis is restarted and once flushed. Compares
// every result with that of the same pool in this process and counts what arrived.
// Usage: node packages/executor-bullmq/scripts/many-jobs.mjs [jobs = 10000], after a build; needs redis-server
import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { canonicalPlan, createPlan, moeLayers, planKey, Rng } from "@coppice/core";
import { parseTask } from "@coppice/evaluate";
import { createBullmqExecutor } from "@coppice/executor-bullmq";
import { Redis } from "ioredis";
import { engine, model, toyPool } from "../test/fixtures/toy-pool.mjs";

const jobs = Number(process.argv[2] ?? 10_000);
const crewSize = 3;
const folder = mkdtempSync(join(tmpdir(), "coppice-many-jobs-"));
const log = join(folder, "computed");
const port = await new Promise((resolve) => {
  const server = createServer().listen(0, "127.0.0.1", () => {
    const address = server.address();
    server.close(() => resolve(typeof address === "object" && address ? address.port : 0));
  });
});
const redis = `redis://127.0.0.1:${port}`;
const pause = (/** @type {number} */ ms) => new Promise((resolve) => setTimeout(resolve, ms));

function startRedis() {
  // With its log on disk a restart loses at most the last second.
  const args = [
    "--port",
    `${port}`,
    "--bind",
    "127.0.0.1",
    "--dir",
    folder,
    "--save",
    "",
    "--appendonly",
    "yes",
  ];
  return spawn("redis-server", args, { stdio: "ignore" });
}

function startWorker() {
  const program = fileURLToPath(new URL("../test/fixtures/worker.mjs", import.meta.url));
  return spawn(process.execPath, [program, JSON.stringify({ redis, delayMs: 20, log, lockMs: 2_000 })], {
    stdio: "ignore",
  });
}

const rng = Rng.fromSeed(1);
/** @type {Map<string, import("@coppice/core").Plan>} */
const different = new Map();
while (different.size < Math.min(jobs, 7_900)) {
  const layers = moeLayers(model).map(({ index }) => ({ layer: index, experts: rng.sample(6, 3) }));
  const plan = canonicalPlan(createPlan(model, layers), model);
  different.set(planKey(plan, model), plan);
}
// A toy has 8,000 different plans of 3 experts; more come from merge matrices.
while (different.size < jobs) {
  const layers = moeLayers(model).map(({ index }) => ({ layer: index, experts: rng.sample(6, 4) }));
  const plan = canonicalPlan(createPlan(model, layers), model);
  different.set(planKey(plan, model), plan);
}
const plans = [...different.values()];
const task = parseTask('{"prompt": "1 =", "answer": " 1"}\n{"prompt": "2 =", "answer": " 2"}', "toy.jsonl");

let server = startRedis();
const crew = Array.from({ length: crewSize }, startWorker);
const begin = performance.now();
const executor = await createBullmqExecutor({ redis, model, engine, task, checkMs: 1_000 });
let kills = 0;
let restarts = 0;
let flushes = 0;
const killing = setInterval(() => {
  crew[kills % crewSize]?.kill("SIGKILL");
  crew[kills++ % crewSize] = startWorker();
}, 5_000);

const results = [];
const part = Math.ceil(jobs / 20);
for (let at = 0; at < jobs; at += part) {
  const done = executor.evaluate(plans.slice(at, at + part));
  if (at >= jobs / 3 && restarts === 0) {
    restarts++;
    await pause(300);
    server.kill("SIGKILL");
    await pause(1_000);
    server = startRedis();
  } else if (at >= (2 * jobs) / 3 && flushes === 0) {
    flushes++;
    await pause(300);
    const client = new Redis(redis);
    await client.flushall();
    client.disconnect();
  }
  results.push(...(await done));
}
clearInterval(killing);
const seconds = (performance.now() - begin) / 1000;
const { tokenLayers } = executor.work();
await executor.dispose();
for (const child of [...crew, server]) child.kill("SIGKILL");

const here = await toyPool().scorer({ task, objective: "likelihood" });
const expected = await here.evaluate(plans);
const wrong = results.filter((result, i) => String(result.scores) !== String(expected[i]?.scores)).length;
const computed = readFileSync(log, "utf8").trim().split("\n").length;
rmSync(folder, { recursive: true, force: true });
process.stdout.write(
  `${JSON.stringify({ jobs, results: results.length, wrong, counted: tokenLayers / 20, computed, kills, restarts, flushes, seconds })}\n`,
);
process.exit(wrong === 0 && results.length === jobs ? 0 : 1);
