// node packages/cli/bench/search.mjs [--task arith] [--keep 4] [--plans 200] [--samples 200] [--generated 3] [--repeats 3]
//
// What docs/packages/search.md quotes: the engine against naive loops, on the plans of one recorded search on the
// shipped model. What all loops find is compared sample by sample. Work is counted and exact; times are medians of
// interleaved rounds. Exits with 1 when an answer is judged otherwise, or a likelihood is another one.
import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { cpu } from "@coppice/backend-cpu";
import { loadModel } from "@coppice/checkpoint";
import { openFolder } from "@coppice/checkpoint/node";
import { moeLayers, planKey, Rng } from "@coppice/core";
import { modelPath, taskPath } from "@coppice/demo-model";
import { encodeTask, loadTokenizer, parseTask } from "@coppice/evaluate";
import { createModelPool } from "@coppice/executor-local";
import { PlanEvaluator, runSearch } from "@coppice/search";
import { eep } from "@coppice/search-eep";
import { generateAnswers, scoreTeacherForced } from "./naive-loops.mjs";

const { values } = parseArgs({
  options: {
    task: { type: "string", default: "arith" },
    keep: { type: "string", default: "4" },
    plans: { type: "string", default: "200" },
    samples: { type: "string", default: "200" },
    generated: { type: "string", default: "3" },
    repeats: { type: "string", default: "3" },
  },
});
const [keep, plans, limit, generated, repeats] = ["keep", "plans", "samples", "generated", "repeats"].map(
  (name) => Number(values[name]),
);
if (![keep, plans, limit, generated, repeats].every((value) => Number.isSafeInteger(value) && value >= 1)) {
  console.error("Every option but --task is a whole number of at least 1.");
  process.exit(2);
}

const task = parseTask(readFileSync(taskPath(values.task, "search"), "utf8"), `${values.task}.jsonl`);
if (task.form !== "generation") {
  console.error(`${values.task} has the form ${task.form}; the loops are for answers that are written.`);
  process.exit(2);
}
const objective = "likelihood";
/** Likelihoods, from 0 to 1, further apart than this are not the same. */
const closeness = 1e-6;
const backend = { module: import.meta.resolve("@coppice/backend-cpu"), export: "cpu" };
const checkpoint = await loadModel(await openFolder(modelPath));
const { model } = checkpoint;
const tokenizer = await loadTokenizer(checkpoint.folder);
const encoded = encodeTask(task, { tokenizer, model, limit });
const runner = await (await cpu.create({}, undefined)).load(checkpoint);
const one = await createModelPool({ model: modelPath, backend, workers: 1 });
const two = await createModelPool({ model: modelPath, backend, workers: 2 });

const asked = await recordSearch();
const distinct = [
  ...new Map(asked.flat().map((candidate) => [planKey(candidate.plan, model), candidate])).values(),
];
const some = Array.from(
  { length: Math.min(generated, distinct.length) },
  (_, i) => distinct[Math.floor((i * distinct.length) / generated)],
);

/** Each evaluates plans and tells what every sample got, NaN where it was not evaluated, and the work done. */
const loops = {
  "naive, generation": () => naive(some, (plan) => generateAnswers(runner, encoded, plan)),
  "naive, teacher forcing": () => naive(distinct, (plan) => scoreTeacherForced(runner, encoded, plan)),
  "engine, no races, 1 worker": () => engine(one, false),
  "engine, no races, 2 workers": () => engine(two, false),
  "engine, races, 1 worker": () => engine(one, true),
  "engine, races, 2 workers": () => engine(two, true),
};

const times = new Map(Object.keys(loops).map((name) => [name, []]));
const idles = new Map(Object.keys(loops).map((name) => [name, []]));
const found = new Map();
for (let round = 1; round <= repeats; round++) {
  const names = Object.keys(loops);
  for (const name of round % 2 ? names : names.toReversed()) {
    const result = await loops[name]();
    times.get(name).push(result.milliseconds);
    if (result.idle !== undefined) idles.get(name).push(result.idle);
    found.set(name, result);
    process.stderr.write(
      `round ${round} of ${repeats}: ${name}, ${(result.milliseconds / 1000).toFixed(1)} s\n`,
    );
  }
}
report();
for (const resource of [one, two, runner]) await resource.dispose();
await checkpoint.close();

/** The batches of candidates that a search asks for. */
async function recordSearch() {
  const strategy = await eep.create(
    { keep },
    { model, rng: Rng.fromSeed(1), evaluations: plans, scores: new Map() },
  );
  const batches = [];
  const executor = await two.scorer({ task, limit, objective });
  const recording = {
    ask(most) {
      const batch = strategy.ask(most);
      batches.push(batch);
      return batch;
    },
    tell: (results) => strategy.tell(results),
  };
  await runSearch({ strategy: recording, model, executor, evaluations: plans });
  await executor.dispose();
  return batches;
}

async function naive(candidates, score) {
  const results = new Map();
  let [tokenLayers, expertTokens] = [0, 0];
  const start = performance.now();
  for (const { plan } of candidates) {
    const { work, ...result } = await score(plan);
    tokenLayers += work.tokenLayers;
    expertTokens += work.expertTokens;
    results.set(planKey(plan, model), result);
  }
  return { results, tokenLayers, expertTokens, milliseconds: performance.now() - start };
}

/** The candidates of the search batch by batch, as it asked for them, from an empty cache. */
async function engine(pool, races) {
  const executor = await pool.scorer({ task, limit, objective });
  const results = new Map();
  const watched = {
    ...executor,
    async evaluate(wanted, options) {
      const answers = await executor.evaluate(wanted, options);
      const { part = 0 } = options;
      const step = options.part === undefined ? 1 : executor.parts;
      for (const [i, plan] of wanted.entries()) {
        const key = planKey(plan, model);
        const known = results.get(key) ?? {
          scores: new Float64Array(encoded.samples.length).fill(Number.NaN),
          correct: new Float64Array(encoded.samples.length).fill(Number.NaN),
        };
        results.set(key, known);
        for (const field of ["scores", "correct"]) {
          for (const [j, value] of answers[i][field].entries()) known[field][part + j * step] = value;
        }
      }
      return answers;
    },
  };
  const busy = () => pool.busyMs().reduce((sum, milliseconds) => sum + milliseconds, 0);
  const busyBefore = busy();
  const start = performance.now();
  const evaluator = new PlanEvaluator({ model, executor: watched });
  for (const batch of asked) {
    await evaluator.evaluate(races ? batch : batch.map(({ rival: _, ...candidate }) => candidate));
  }
  const milliseconds = performance.now() - start;
  const idle = 1 - (busy() - busyBefore) / (pool.workers * milliseconds);
  const { tokenLayers, expertTokens } = executor.work();
  await executor.dispose();
  return { results, tokenLayers, expertTokens, milliseconds, idle };
}

/** Prints the table, and whether all loops agree. */
function report() {
  const perPlan = (name) => {
    const { results, tokenLayers, expertTokens } = found.get(name);
    return {
      work: tokenLayers / results.size,
      experts: expertTokens / results.size,
      time: median(times.get(name)) / results.size,
    };
  };
  const base = perPlan("naive, teacher forcing");
  const row = (...cells) => console.log(`| ${cells.join(" | ")} |`);
  console.log(
    `${distinct.length} plans of a search (eep, ${keep} of ${moeLayers(model)[0].feedForward.experts.length} experts kept) ` +
      `on ${encoded.samples.length} samples of ${values.task}; medians of ${repeats} interleaved rounds\n`,
  );
  row(
    "loop",
    "plans",
    "token-layers per plan",
    "work",
    "token-experts",
    "ms per plan",
    "time",
    "workers idle",
  );
  row(...Array(8).fill("---"));
  for (const name of found.keys()) {
    const { work, experts, time } = perPlan(name);
    const idle = idles.get(name);
    row(
      name,
      found.get(name).results.size,
      Math.round(work).toLocaleString("en"),
      `${((100 * work) / base.work).toFixed(1)} %`,
      `${((100 * experts) / base.experts).toFixed(1)} %`,
      time.toFixed(1),
      `${((100 * time) / base.time).toFixed(1)} %`,
      idle.length > 0 ? `${(100 * median(idle)).toFixed(1)} %` : "",
    );
  }
  const ratio = (races) =>
    (perPlan(`engine, ${races}, 1 worker`).time / perPlan(`engine, ${races}, 2 workers`).time).toFixed(2);
  console.log(
    `\n2 workers against 1: ${ratio("no races")} times as fast without races, ${ratio("races")} with\n`,
  );
  for (const name of found.keys()) compare(name);
}

/**
 * Compares what a loop found with the naive loop, sample by sample. Where equal beginnings are computed once, products of
 * matrices have other numbers of rows; on a processor where that changes the order of float32 sums, fitness may differ in its
 * last bits.
 */
function compare(name) {
  const expected = found.get("naive, teacher forcing").results;
  let [scores, same, furthest, answers, wrong] = [0, 0, 0, 0, 0];
  for (const [key, result] of found.get(name).results) {
    for (const [i, value] of (result.scores ?? []).entries()) {
      if (Number.isNaN(value)) continue;
      const difference = Math.abs(value - expected.get(key).scores[i]);
      scores++;
      same += Number(difference === 0);
      furthest = Math.max(furthest, difference);
    }
    for (const [i, value] of result.correct.entries()) {
      if (Number.isNaN(value)) continue;
      answers++;
      wrong += Number(value !== expected.get(key).correct[i]);
    }
  }
  if (wrong > 0 || furthest > closeness) process.exitCode = 1;
  const fitness =
    scores === 0
      ? []
      : [`${same} of ${scores} scores the same bits, others at most ${furthest.toExponential(1)} off`];
  console.log([`${name}: ${answers - wrong} of ${answers} answers judged alike`, ...fitness].join("; "));
}

function median(numbers) {
  const sorted = numbers.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}
