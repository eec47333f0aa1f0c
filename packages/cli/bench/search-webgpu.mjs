// node packages/cli/bench/search-webgpu.mjs [--model folder] [--task file.jsonl] [--samples 200] [--plans 96] [--keep 4]
//   [--cpu 4x1,4x4] [--precision f32] [--lanes 8] [--profile] [--kernels] [--flags dawn-toggles]
//
// Candidates per second of the webgpu backend and of the cpu backend on the same plans, and how far their scores are apart. The
// plans are those of a search in small: random sets of kept experts, their children with one other layer, and children that
// merge; they are evaluated in batches of 8 that wait for one another. `--cpu` names numbers of worker processes and of threads
// of each, which are measured in turn; empty: none. `--profile` adds what a candidate costs: milliseconds of JavaScript,
// dispatches, submissions, transfers. `--kernels` runs the plans once more and gives the device's time for each kernel. Needs
// npm `webgpu`. Exits with 1 when more than one sample in 200 is judged otherwise.
import { fork } from "node:child_process";
import { readFileSync } from "node:fs";
import { cpus } from "node:os";
import { parseArgs } from "node:util";
import { cpu } from "@coppice/backend-cpu";
import { createWebgpuBackend } from "@coppice/backend-webgpu";
import { loadModel } from "@coppice/checkpoint";
import { openFolder } from "@coppice/checkpoint/node";
import { createPlan, moeLayers, Rng } from "@coppice/core";
import {
  createEvaluator,
  encodeTask,
  loadTokenizer,
  parseTask,
  partBatches,
  shardBatches,
} from "@coppice/evaluate";

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

if (values.worker) await work(values.worker);
else await measure();

/** One worker process of the cpu backend: scores its share of the samples under every plan that it is sent. */
async function work(share) {
  const [index, count, threads] = share.split("/").map(Number);
  const runner = await (await cpu.create({ threads, mergeCacheBytes: 2 ** 28 }, undefined)).load(checkpoint);
  const parts = partBatches(task).map(
    (batches, part) => shardBatches(batches, count)[(index + part) % count] ?? [],
  );
  const evaluator = createEvaluator({ runner, task, parts, prefixCacheBytes: 2 ** 28 / count });
  let last = Promise.resolve();
  process.on("message", ({ id, plan }) => {
    last = last.then(async () => {
      const { scores, correct } = await evaluator.evaluate(plan);
      process.send({
        id,
        samples: [...evaluator.samples],
        scores: [...scores],
        correct: [...(correct ?? [])],
      });
    });
  });
  process.on("disconnect", () => process.exit());
  process.send({ ready: true });
}

async function measure() {
  const batches = plansOf(Number(values.plans));
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
    const { seconds, results } = await measureCpu(batches, workers, threads);
    row(`cpu, ${workers} workers of ${threads} threads`, seconds);
    best = Math.min(best, seconds);
    compare(found.results, results);
  }
  if (Number.isFinite(best))
    console.log(`webgpu: ${(best / found.seconds).toFixed(2)} times the fastest cpu`);
  process.exit();
}

/** Batches of up to 8 plans: a third keep other experts, a third are children of those, a third merge in one more layer. */
function plansOf(most) {
  const rng = Rng.fromSeed(7);
  const layers = moeLayers(model);
  const keep = Number(values.keep);
  const below = (n) => Math.min(n - 1, Math.floor(n * rng.uniform()));
  const pruned = ({ index, feedForward }) => {
    const left = feedForward.experts.map((_, i) => i);
    return {
      layer: index,
      experts: Array.from({ length: keep }, () => left.splice(below(left.length), 1)[0]).sort(
        (a, b) => a - b,
      ),
    };
  };
  const merged = (layer, { feedForward }) => ({
    ...layer,
    merge: layer.experts.map((expert) =>
      feedForward.experts.map((_, i) => (i === expert ? 1 : rng.uniform() < 0.5 ? 0.1 * rng.uniform() : 0)),
    ),
  });
  const made = Array.from({ length: Math.ceil(most / 3) }, () => layers.map(pruned));
  while (made.length < most) {
    const parent = made[Math.max(0, made.length - 1 - below(16))];
    const at = below(layers.length);
    const change = made.length < (2 * most) / 3 ? () => pruned(layers[at]) : (own) => merged(own, layers[at]);
    made.push(parent.map((layer, i) => (i === at ? change(layer) : layer)));
  }
  const plans = made.map((all) => createPlan(model, all));
  return Array.from({ length: Math.ceil(most / 8) }, (_, i) => plans.slice(8 * i, 8 * i + 8));
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

/** Counts what a device is told to do, and times its kernels one by one when asked to. */
function watchDevice() {
  const names = ["dispatch", "pass", "submit", "write", "written", "map", "read", "mapMs", "buffer", "group"];
  const counts = Object.fromEntries(names.map((name) => [name, 0]));
  const sums = new Map();
  const open = [];
  let timing = false;
  let device;
  const wrapPass = (encoder, queries) => {
    let pipeline;
    let group;
    return {
      setPipeline: (own) => {
        pipeline = own;
      },
      setBindGroup: (...own) => {
        group = own.map((one) => (ArrayBuffer.isView(one) ? one.slice() : one));
      },
      dispatchWorkgroups(...size) {
        if (queries.names.length === 2048) return this.plain(size);
        const at = 2 * queries.names.length;
        queries.names.push(pipeline.label);
        const pass = encoder.beginComputePass({
          timestampWrites: {
            querySet: queries.set,
            beginningOfPassWriteIndex: at,
            endOfPassWriteIndex: at + 1,
          },
        });
        pass.setPipeline(pipeline);
        pass.setBindGroup(...group);
        pass.dispatchWorkgroups(...size);
        pass.end();
      },
      plain(size) {
        const pass = encoder.beginComputePass();
        pass.setPipeline(pipeline);
        pass.setBindGroup(...group);
        pass.dispatchWorkgroups(...size);
        pass.end();
      },
      end() {},
    };
  };
  const timedEncoder = (encoder) => {
    const queries = { set: device.createQuerySet({ type: "timestamp", count: 4096 }), names: [] };
    return {
      beginComputePass: () => wrapPass(encoder, queries),
      copyBufferToBuffer: (...rest) => encoder.copyBufferToBuffer(...rest),
      resolveQuerySet: (...rest) => encoder.resolveQuerySet(...rest),
      finish() {
        const size = 16 * Math.max(1, queries.names.length);
        const resolved = device.createBuffer({ size, usage: 512 | 4 });
        const target = device.createBuffer({ size, usage: 1 | 8 });
        if (queries.names.length > 0) {
          encoder.resolveQuerySet(queries.set, 0, 2 * queries.names.length, resolved, 0);
          encoder.copyBufferToBuffer(resolved, 0, target, 0, size);
        }
        open.push({ ...queries, resolved, target });
        return encoder.finish();
      },
    };
  };
  const collect = async () => {
    for (const { names, set, resolved, target } of open.splice(0)) {
      await target.mapAsync(1);
      const ticks = new BigUint64Array(target.getMappedRange());
      for (const [i, name] of names.entries()) {
        const sum = sums.get(name) ?? { name, ms: 0, count: 0 };
        sum.ms += Math.max(0, Number(ticks[2 * i + 1] - ticks[2 * i])) / 1e6;
        sum.count++;
        sums.set(name, sum);
      }
      for (const one of [target, resolved, set]) one.destroy();
    }
  };
  const onPrototype = (object, name, around) => {
    const owner = Object.getPrototypeOf(object);
    const plain = owner[name];
    owner[name] = function (...rest) {
      return around.call(this, plain, rest);
    };
  };
  return {
    counts,
    reset() {
      for (const name of names) counts[name] = 0;
    },
    time() {
      timing = device.features.has("timestamp-query");
    },
    async times() {
      await collect();
      timing = false;
      return [...sums.values()].sort((a, b) => b.ms - a.ms);
    },
    adapter: (adapter) => ({
      info: adapter.info,
      features: adapter.features,
      limits: adapter.limits,
      async requestDevice(wanted) {
        device = await adapter.requestDevice(wanted);
        onPrototype(device.queue, "submit", function (plain, rest) {
          counts.submit++;
          return plain.apply(this, rest);
        });
        onPrototype(device.queue, "writeBuffer", function (plain, rest) {
          counts.write++;
          counts.written += rest[4] ?? rest[2].byteLength;
          return plain.apply(this, rest);
        });
        onPrototype(device, "createBuffer", function (plain, rest) {
          counts.buffer++;
          return plain.apply(this, rest);
        });
        onPrototype(device, "createBindGroup", function (plain, rest) {
          counts.group++;
          return plain.apply(this, rest);
        });
        onPrototype(device, "createCommandEncoder", function (plain, rest) {
          const encoder = plain.apply(this, rest);
          return timing ? timedEncoder(encoder) : encoder;
        });
        const buffer = device.createBuffer({ size: 16, usage: 8 });
        onPrototype(buffer, "mapAsync", async function (plain, rest) {
          counts.map++;
          counts.read += rest[2] ?? this.size;
          const begin = performance.now();
          await plain.apply(this, rest);
          counts.mapMs += performance.now() - begin;
        });
        buffer.destroy();
        const encoder = device.createCommandEncoder();
        onPrototype(encoder, "beginComputePass", function (plain, rest) {
          counts.pass++;
          return plain.apply(this, rest);
        });
        const pass = encoder.beginComputePass();
        onPrototype(pass, "dispatchWorkgroups", function (plain, rest) {
          counts.dispatch++;
          return plain.apply(this, rest);
        });
        pass.end();
        encoder.finish();
        return device;
      },
    }),
  };
}

async function measureCpu(batches, workers, threads) {
  const children = await Promise.all(
    Array.from(
      { length: workers },
      (_, i) =>
        new Promise((resolve) => {
          const child = fork(process.argv[1], [
            ...process.argv.slice(2),
            "--worker",
            `${i}/${workers}/${threads}`,
          ]);
          child.once("message", () => resolve(child));
        }),
    ),
  );
  const waiting = new Map();
  const results = [];
  for (const child of children) {
    child.on("message", ({ id, samples, scores, correct }) => {
      const entry = waiting.get(id);
      for (const [i, sample] of samples.entries()) {
        entry.scores[sample] = scores[i];
        if (correct.length > 0) entry.correct[sample] = correct[i];
      }
      if (--entry.left === 0) entry.resolve(entry);
    });
  }
  let id = 0;
  const evaluate = (plan) =>
    new Promise((resolve) => {
      const own = id++;
      const size = task.samples.length;
      waiting.set(own, {
        scores: new Float64Array(size),
        correct: new Uint8Array(size),
        left: children.length,
        resolve,
      });
      for (const child of children) child.send({ id: own, plan });
    });
  await Promise.all([batches[0][0], batches.at(-1).at(-1)].map(evaluate));
  const begin = performance.now();
  for (const batch of batches) results.push(...(await Promise.all(batch.map(evaluate))));
  const seconds = (performance.now() - begin) / 1000;
  for (const child of children) child.disconnect();
  return { seconds, results };
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
