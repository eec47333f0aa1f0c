// Runs a small search in the run folder given as argument and prints the key of every plan that it evaluates.
import { createPlan, moeLayers, planKey, Rng } from "@coppice/core";
import { separableLandscape, toyExecutor, toyModel } from "@coppice/plugin-kit";
import { runSearch } from "@coppice/search";
import { openRunFolder } from "@coppice/search/node";

const model = toyModel();
const { fitness } = separableLandscape(model);
const rng = Rng.fromSeed(5);
const strategy = {
  ask: (/** @type {number} */ limit) =>
    Array.from({ length: limit }, () => ({
      plan: createPlan(
        model,
        moeLayers(model).map((layer) => ({ layer: layer.index, experts: rng.sample(6, 3) })),
      ),
      phase: "prune",
      origin: "random",
    })),
  tell: () => {},
};
const toy = toyExecutor(fitness);
const executor = {
  ...toy,
  /** @type {import("@coppice/core").Executor["evaluate"]} */
  async evaluate(plans) {
    for (const plan of plans) process.stdout.write(`${planKey(plan, model)}\n`);
    await new Promise((resolve) => setTimeout(resolve, 4));
    return toy.evaluate(plans);
  },
};
const run = await openRunFolder(process.argv[2], { seed: 5 });
const result = await runSearch({
  strategy,
  model,
  executor,
  evaluations: 50,
  batch: 2,
  journal: run.journal,
  onBest: async (best) => {
    await run.writeJson("plan.json", best.candidate.plan);
  },
});
const { best, history, evaluations, cacheHits } = result;
await run.writeJson("result.json", { key: best.key, fitness: best.fitness, history, evaluations, cacheHits });
await run.dispose();
