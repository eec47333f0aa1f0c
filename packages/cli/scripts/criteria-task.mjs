// One task of the table of criteria: calibrates once, scores by every criterion, chooses, repairs, judges.
import {
  createPlan,
  createRegistry,
  isPlugin,
  planFromScores,
  planKey,
  Rng,
  sampleFields,
} from "@coppice/core";
import * as installed from "@coppice/criteria";
import { checkDisjoint, pairedBootstrap } from "@coppice/evaluate";
import { acceptLayers, repairNeeds, repairRouter } from "@coppice/router-repair";

/** Random plans whose mean is the baseline. */
const draws = 10;
/** Criteria whose scores on the holdout are shown whether they are best or not. */
export const shown = ["frequency", "soft-activation", "reap"];

const registry = createRegistry(Object.values(installed).filter(isPlugin));
/** A single random plan says little, so that it does not compete. */
export const criterionNames = registry
  .list("criterion")
  .map(({ pluginName }) => pluginName)
  .filter((name) => name !== "random");

/**
 * @typedef {object} TaskRequest
 * @property {import("@coppice/checkpoint").LoadedCheckpoint} checkpoint
 * @property {import("@coppice/executor-local").ModelPool} pool the same model
 * @property {number} keep experts that every layer keeps
 * @property {number} sampled tokens of the sample in the statistics
 * @property {import("@coppice/evaluate").Task} search samples that everything is calibrated and chosen on
 * @property {import("@coppice/evaluate").Task} holdout samples that are looked at when all is chosen
 */

/**
 * Figures of one task. Every score is a share of right answers, every token as expected; those on the holdout are
 * measured after the last choice is made.
 * @param {TaskRequest} request
 */
export async function measureTask(request) {
  const { checkpoint, keep, search, holdout } = request;
  const { model, weights } = checkpoint;
  checkDisjoint(search, holdout);
  const criteria = new Map();
  for (const name of criterionNames) {
    criteria.set(name, await registry.create("criterion", name, {}, undefined));
  }
  const statistics = await collect(request, [...criteria.values()]);
  const plans = new Map();
  for (const [name, criterion] of criteria) {
    const rng = Rng.fromSeed(0);
    plans.set(
      name,
      planFromScores(model, await criterion.score({ model, weights, statistics, keep, rng }), keep),
    );
  }

  const scorer = await request.pool.scorer({ task: search });
  const onSearch = await scoreAll(scorer, model, [...plans.values()]);
  const candidates = [...plans].map(([criterion, plan], i) => ({ criterion, plan, search: onSearch[i] }));
  const best = candidates.reduce((one, other) => (better(other.search, one.search) ? other : one));
  const fitted = await repairRouter({ model, weights, plan: best.plan, statistics });
  const repair = await acceptLayers({
    plan: best.plan,
    repaired: fitted,
    measure: async (plan) => 1 - likelihood((await scorer.evaluate([plan]))[0]),
  });
  const [repairedOnSearch] = await scorer.evaluate([repair.plan]);
  await scorer.dispose();

  const randomPlans = await drawPlans(model, keep);
  const named = [createPlan(model), ...shown.map((name) => plans.get(name)), best.plan, repair.plan];
  const judge = await request.pool.scorer({ task: holdout });
  const onHoldout = await scoreAll(judge, model, [...named, ...randomPlans]);
  await judge.dispose();
  const [full, ...rest] = onHoldout;
  const repaired = rest[shown.length + 1];
  const chosen = rest[shown.length];
  const random = rest.slice(shown.length + 2).map(exact);
  return {
    samples: { search: search.samples.length, holdout: holdout.samples.length },
    search: {
      criteria: Object.fromEntries(candidates.map(({ criterion, search }) => [criterion, summary(search)])),
      repaired: summary(repairedOnSearch),
    },
    best: best.criterion,
    repair: { fitted: fitted.layers, kept: repair.layers },
    holdout: {
      full: exact(full),
      random: { mean: mean(random), draws: random },
      criteria: Object.fromEntries(shown.map((name, i) => [name, exact(rest[i])])),
      best: exact(chosen),
      repaired: exact(repaired),
    },
    differences: {
      repairedOverBest: pairedBootstrap(repaired.correct, chosen.correct),
      repairedOverReap: pairedBootstrap(repaired.correct, rest[shown.indexOf("reap")].correct),
    },
  };
}

/** One pass over the search samples with all that the criteria and the repair read. */
function collect({ pool, search, sampled }, criteria) {
  const needs = [...criteria.map((criterion) => criterion.needs), repairNeeds];
  const extras = [...new Set(needs.flatMap((each) => each.extras ?? []))];
  const fields = new Set(needs.flatMap((each) => each.sample ?? []));
  return pool.collectStatistics({
    task: search,
    extras,
    sample: { limit: sampled, with: sampleFields.filter((field) => fields.has(field)) },
  });
}

async function drawPlans(model, keep) {
  const random = await registry.create("criterion", "random", {}, undefined);
  const plans = [];
  for (let seed = 0; seed < draws; seed++) {
    plans.push(planFromScores(model, await random.score({ model, rng: Rng.fromSeed(seed) }), keep));
  }
  return plans;
}

/** Right answers and likelihoods of every plan; equal plans, which criteria often agree on, run once. */
async function scoreAll(scorer, model, plans) {
  const keys = plans.map((plan) => planKey(plan, model));
  const different = [...new Map(keys.map((key, i) => [key, plans[i]]))];
  const scores = await scorer.evaluate(different.map(([, plan]) => plan));
  const known = new Map(different.map(([key], i) => [key, scores[i]]));
  return keys.map((key) => known.get(key));
}

/** More right answers; where they are as many, a higher likelihood of the expected ones. */
function better(one, other) {
  return (exact(one) - exact(other) || likelihood(one) - likelihood(other)) > 0;
}

const exact = ({ correct }) => mean(correct);
const likelihood = ({ scores }) => mean(scores);
const summary = (scores) => ({ exactMatch: exact(scores), likelihood: likelihood(scores) });

/** @param {ArrayLike<number>} values */
function mean(values) {
  return Array.from(values).reduce((sum, value) => sum + value, 0) / values.length;
}
