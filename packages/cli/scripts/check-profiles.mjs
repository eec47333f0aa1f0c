// Evidence for profiles: how often the task of a prompt is found, what experts of a task drop, and what drift shows.
// Usage: npm run check:profiles [-- <model folder>]; default: the demo model.

import { readFile } from "node:fs/promises";
import { cpu } from "@coppice/backend-cpu";
import { collectStatistics, droppedProbability } from "@coppice/calibrate";
import { loadModel, partialModel } from "@coppice/checkpoint";
import { openFolder } from "@coppice/checkpoint/node";
import { moeLayers, Rng } from "@coppice/core";
import { reap } from "@coppice/criteria";
import { modelPath, taskNames, taskPath } from "@coppice/demo-model";
import { calibrationSequences, loadTokenizer, parseTask } from "@coppice/evaluate";
import {
  addProfile,
  createStore,
  DriftMonitor,
  expectedDrop,
  openPromptReader,
  pickProfile,
  profilePlan,
  readRouters,
  taskStatistics,
} from "@coppice/profiles";

/** Samples of a task that its profile is built from; the others of the search split are tested. */
const built = 100;
/** Samples of each task that drift is watched on, one by one. */
const watched = 10;
/** What tokens may drop more than the data of the profile. */
const slacks = [0.05, 0.1];

const [path = modelPath] = process.argv.slice(2);
const started = performance.now();
const checkpoint = await loadModel(await openFolder(path));
const { model, weights, folder } = checkpoint;
const tokenizer = await loadTokenizer(folder);
const backend = await cpu.create({}, undefined);
const criterion = await reap.create({}, undefined);

const tasks = new Map();
{
  const runner = await backend.load({ model, weights });
  const reader = await openPromptReader(backend, { model, weights });
  for (const name of taskNames) {
    const task = parseTask(await readFile(taskPath(name, "search"), "utf8"), name);
    const encode = (promptsOnly) => calibrationSequences(task, { tokenizer, model, promptsOnly });
    const [prompts, answers] = [encode(true), encode(false)];
    const collect = (sequences) => collectStatistics({ runner, sequences, name });
    const statistics = await collect(answers.slice(0, built));
    tasks.set(name, {
      statistics,
      scores: await criterion.score({ model, statistics, weights, rng: Rng.fromSeed(1) }),
      prompts: await reader.sums(prompts.slice(0, built)),
      tested: await eachSums(reader, prompts.slice(built)),
      heldOut: answers.slice(built),
      heldOutStatistics: await collect(answers.slice(built)),
    });
  }
  await runner.dispose();
  await reader.dispose();
}

const percent = (value) => `${(100 * value).toFixed(1)} %`;
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const row = (...cells) => console.log(`| ${cells.join(" | ")} |`);
const head = (...cells) => {
  row(...cells);
  row(...cells.map(() => "---"));
};

async function eachSums(reader, prompts) {
  const sums = [];
  for (const prompt of prompts) sums.push(await reader.sums([prompt]));
  return sums;
}

function storeOf(statistic) {
  let store = createStore(model, statistic);
  for (const [name, { statistics, scores, prompts }] of tasks) {
    store = addProfile(store, { name, model, statistics, scores, prompts, criterion: "reap" });
  }
  return store;
}

console.log(`\nPrompts whose task is found, of ${tasks.values().next().value.tested.length} per task\n`);
head("statistic", "all", ...taskNames);
for (const statistic of taskStatistics) {
  const store = storeOf(statistic);
  const found = taskNames.map((name) =>
    mean(
      tasks
        .get(name)
        .tested.map((sums) => (pickProfile(store, sums).nearest[0].profile.name === name ? 1 : 0)),
    ),
  );
  row(statistic, percent(mean(found)), ...found.map(percent));
}

const store = storeOf("logit-gram");
console.log(
  "\nBy margin, logit-gram: how many prompts are below, and whether the nearest, or one of the two nearest, is right\n",
);
head("margin", "prompts below", "nearest right below", "one of two right below", "nearest right at or above");
const picks = taskNames.flatMap((name) =>
  tasks.get(name).tested.map((sums) => {
    const { margin, nearest } = pickProfile(store, sums);
    const rank = nearest.findIndex(({ profile }) => profile.name === name);
    return { margin, rank };
  }),
);
for (const margin of [0.05, 0.1, 0.2, 0.3]) {
  const below = picks.filter((pick) => pick.margin < margin);
  const above = picks.filter((pick) => pick.margin >= margin);
  row(
    margin,
    percent(below.length / picks.length),
    percent(mean(below.map(({ rank }) => (rank === 0 ? 1 : 0)))),
    percent(mean(below.map(({ rank }) => (rank <= 1 ? 1 : 0)))),
    percent(mean(above.map(({ rank }) => (rank === 0 ? 1 : 0)))),
  );
}

const [{ experts, topK }] = moeLayers(model).map(({ feedForward }) => ({
  experts: feedForward.experts.length,
  topK: feedForward.router.topK,
}));
const step = Math.max(1, Math.floor(experts / 8));
const keeps = Array.from({ length: experts }, (_, i) => i + 1).filter(
  (keep) => keep >= topK && keep < experts && keep % step === 0,
);
console.log("\nProbability dropped on unseen samples of the task, by experts kept per layer\n");
head("task", ...keeps.map(String));
const dropsOf = (name, scores) =>
  new Map(
    droppedProbability(model, tasks.get(name).heldOutStatistics, scores).overall.map(({ keep, dropped }) => [
      keep,
      dropped,
    ]),
  );
for (const name of taskNames) {
  const drops = dropsOf(name, tasks.get(name).scores);
  row(name, ...keeps.map((keep) => drops.get(keep).toFixed(3)));
}
const foreign = taskNames.map((name) =>
  taskNames.filter((other) => other !== name).map((other) => dropsOf(name, tasks.get(other).scores)),
);
row(
  "another task's profile, mean",
  ...keeps.map((keep) => mean(foreign.flat().map((drops) => drops.get(keep))).toFixed(3)),
);

const keep = experts / 2;
console.log(
  `\nDrift with ${keep} of ${experts} experts, on ${watched} unseen samples per task, one by one\n`,
);
head(
  "profile",
  "its data drops",
  "own samples drop",
  "others drop",
  ...slacks.flatMap((slack) => [`own drift, ${slack} more`, `others drift, ${slack} more`]),
);
const routers = await readRouters(model, weights);
for (const profile of store.profiles) {
  const plan = profilePlan(model, profile.layers, { keep });
  const expected = expectedDrop(profile.layers, plan);
  const { experts: kept, ...part } = partialModel(model, weights, plan);
  const runner = await backend.load(part);
  const drifts = { own: [], others: [] };
  for (const name of taskNames) {
    for (const ids of tasks.get(name).heldOut.slice(0, watched)) {
      const monitor = new DriftMonitor({ routers, kept, threshold: 1 });
      await runner.run({
        sequences: [ids],
        to: model.layers.length,
        tap: { fields: DriftMonitor.fields, onLayer: (layer) => monitor.observe(layer) },
      });
      drifts[name === profile.name ? "own" : "others"].push(monitor.settle().dropped);
    }
  }
  await runner.dispose();
  row(
    profile.name,
    expected.toFixed(3),
    mean(drifts.own).toFixed(3),
    mean(drifts.others).toFixed(3),
    ...slacks.flatMap((slack) =>
      [drifts.own, drifts.others].map((list) =>
        percent(mean(list.map((dropped) => (dropped > expected + slack ? 1 : 0)))),
      ),
    ),
  );
}
console.log(`\n${((performance.now() - started) / 1000).toFixed(0)} s`);
process.exit(0);
