// node packages/cli/bench/search-webgpu.mjs [--model folder] [--task file.jsonl] [--samples 200] [--plans 96] [--keep 4]
//   [--cpu 4x1,4x4] [--precision f32] [--lanes 8] [--profile] [--kernels] [--flags dawn-toggles]
//
// Candidates per second of the webgpu backend and of the cpu backend on the same plans, and how far their scores are apart. The
// plans are those of a search in small: random sets of kept experts, their children with one other layer, and children that
// merge; they are evaluated in batches of 8 that wait for one another. `--cpu` names numbers of worker processes and of threads
// of each, which are measured in turn; empty: none. `--profile` adds what a candidate costs: milliseconds of JavaScript,
// dispatches, submissions, transfers. `--kernels` runs the plans once more and gives the device's time for each kernel. Needs
// npm `webgpu`. Exits with 1 when more than one sample in 200 is judged otherwise.
import { readFileSync } from "node:fs";
import { cpus } from "node:os";
import { parseArgs } from "node:util";
import { createWebgpuBackend } from "@coppice/backend-webgpu";
import { loadModel } from "@coppice/checkpoint";
import { openFolder } from "@coppice/checkpoint/node";
import { moeLayers } from "@coppice/core";
import { createEvaluator, encodeTask, loadTokenizer, parseTask } from "@coppice/evaluate";
import { scoreInProcesses, serveScores } from "./scoring-processes.mjs";
import { searchPlans } from "./search-plans.mjs";
import { watchDevice } from "./watch-device.mjs";

const { values } = parseArgs({
  options: {
    model: { type: "string", default: "packages/demo-model/model" },
    task: { type: "string", default: "packages/demo-model/tasks/search/arith.jsonl" },
    samples: { type: "string", default: "200" },
    plans: { type: "string", default: "96" },
    keep: { type: "string", default: "4" },
    cpu: { type: "string", default: "4x1" },
    precision: { type: "string", default: "f32" },
    lanes: { type: "string", default: "8" },
    profile: { type: "boolean", default: false },
    kernels: { type: "boolean", default: false },
    flags: {
      type: "string",
      default:
        "enable-dawn-features=allow_unsafe_apis,vulkan_enable_f16_on_nvidia;disable-dawn-features=timestamp_quantization",
    },
    worker: { type: "string" },
  },
});
const limit = Number(values.samples);
const lanes = Number(values.lanes);
const checkpoint = await loadModel(await openFolder(values.model));
const { model } = checkpoint;
const tokenizer = await loadTokenizer(checkpoint.folder);
const task = encodeTask(parseTask(readFileSync(values.task, "utf8"), values.task), {
  tokenizer,
  model,
  limit,
});

if (values.worker) await serveScores(checkpoint, task, values.worker);
else await measure();

async function measure() {
  const batches = searchPlans(model, Number(values.plans), Number(values.keep));
  const count = batches.flat().length;
  const tokens = task.samples
    .flatMap(({ sequences }) => sequences)
    .reduce((sum, { ids }) => sum + ids.length, 0);
  console.log(
    `${count} plans that keep ${values.keep} of ${moeLayers(model)[0].feedForward.experts.length} experts, ` +
      `${task.samples.length} samples of ${task.name} (${tokens} tokens); ${cpus().length} cores, Node ${process.version}`,
  );
  console.log("| backend | seconds | candidates per second |\n|---|---|---|");
  const row = (name, seconds) =>
    console.log(`| ${name} | ${seconds.toFixed(2)} | ${(count / seconds).toFixed(2)} |`);
  const found = await measureWebgpu(batches, row);
  let best = Number.POSITIVE_INFINITY;
  for (const form of values.cpu.split(",").filter(Boolean)) {
    const [workers, threads] = form.split("x").map(Number);
    const { seconds, results } = await scoreInProcesses(batches, task.samples.length, workers, threads);
    row(`cpu, ${workers} workers of ${threads} threads`, seconds);
    best = Math.min(best, seconds);
    compare(found.results, results);
  }
  if (Number.isFinite(best))
    console.log(`webgpu: ${(best / found.seconds).toFixed(2)} times the fastest cpu`);
  process.exit();
}

async function measureWebgpu(batches, row) {
  const { create } = await import("webgpu");
  const gpu = create([...values.flags.split(";").filter(Boolean)]);
  const watch = watchDevice();
  const backend = createWebgpuBackend(
    {
      name: "npm webgpu",
      async requestAdapter() {
        const adapter = await gpu.requestAdapter({ powerPreference: "high-performance" });
        if (adapter)
          console.error(`${adapter.info.vendor} ${adapter.info.device} ${adapter.info.description}`);
        return adapter && watch.adapter(adapter);
      },
    },
    { precision: values.precision },
  );
  const runner = await backend.load(checkpoint);
  const evaluateAll = async () => {
    const evaluator = createEvaluator({ runner, task });
    const own = runner.pace ? lanes : 1;
    const results = [];
    const begin = performance.now();
    for (const batch of batches) {
      const waiting = batch.map((plan, i) => ({ plan, i }));
      const answers = [];
      const lane = async () => {
        for (let next = waiting.shift(); next; next = waiting.shift())
          answers[next.i] = await evaluator.evaluate(next.plan);
      };
      await Promise.all(Array.from({ length: own }, lane));
      results.push(...answers);
    }
    const seconds = (performance.now() - begin) / 1000;
    const work = evaluator.work();
    evaluator[Symbol.dispose]();
    return { seconds, results, work };
  };
  // Once to compile kernels and to check them.
  const warm = createEvaluator({ runner, task });
  if (runner.pace) await Promise.all([...batches[0], ...batches.at(-1)].map((plan) => warm.evaluate(plan)));
  else for (const plan of [batches[0][0], batches.at(-1).at(-1)]) await warm.evaluate(plan);
  warm[Symbol.dispose]();
  watch.reset();
  const usage = process.cpuUsage();
  const busy = performance.eventLoopUtilization();
  const found = await evaluateAll();
  const { active } = performance.eventLoopUtilization(busy);
  row(`webgpu, ${values.precision}`, found.seconds);
  if (values.profile) {
    const count = found.results.length;
    const { user, system } = process.cpuUsage(usage);
    const per = (value, digits = 2) => (value / count).toFixed(digits);
    console.log(
      `per candidate: ${per(1000 * found.seconds)} ms in all, ${per(active)} ms of JavaScript, ` +
        `${per((user + system) / 1000)} ms of all threads of the process; ${per(watch.counts.dispatch, 0)} dispatches, ` +
        `${per(watch.counts.pass, 1)} passes, ${per(watch.counts.submit, 1)} submissions, ${per(watch.counts.write, 1)} writes of ` +
        `${per(watch.counts.written / 1024, 1)} KiB, ${per(watch.counts.map, 1)} readbacks of ${per(watch.counts.read / 1024, 1)} KiB, ` +
        `${per(watch.counts.buffer, 1)} buffers and ${per(watch.counts.group, 1)} bind groups made, ${per(watch.counts.mapMs)} ms ` +
        `under readbacks, ${per(found.work.tokenLayers, 0)} token-layers`,
    );
  }
  if (values.kernels) {
    watch.time();
    const again = await evaluateAll();
    const times = await watch.times();
    const total = times.reduce((sum, { ms }) => sum + ms, 0);
    console.log(
      `device time by kernel, ${(total / again.results.length).toFixed(3)} ms per candidate (${again.seconds.toFixed(2)} s in all):`,
    );
    for (const { name, ms, count } of times) {
      console.log(
        `  ${name}: ${(ms / again.results.length).toFixed(4)} ms, ${(count / again.results.length).toFixed(1)} dispatches, ` +
          `${((1000 * ms) / count).toFixed(1)} us each`,
      );
    }
  }
  return found;
}

/** Sample by sample: how far scores are apart, and how many answers are judged otherwise. */
function compare(found, expected) {
  let [furthest, otherwise, most] = [0, 0, 0];
  for (const [i, { scores, correct }] of found.entries()) {
    let own = 0;
    for (const [j, score] of scores.entries()) {
      furthest = Math.max(furthest, Math.abs(score - expected[i].scores[j]));
      own += Number((correct?.[j] ?? 0) !== expected[i].correct[j]);
    }
    otherwise += own;
    most = Math.max(most, own);
  }
  const allowed = Math.ceil(task.samples.length / 200);
  if (!(most <= allowed)) process.exitCode = 1;
  console.log(
    `scores at most ${furthest.toExponential(1)} apart; ${otherwise} answers judged otherwise in ${found.length} plans, ` +
      `at most ${most} in one plan`,
  );
}
