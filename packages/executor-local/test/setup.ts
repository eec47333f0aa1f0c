import { readFileSync } from "node:fs";
import { createPlan, type MoeModel, type Plan, Rng } from "@coppice/core";
import { modelPath, taskPath } from "@coppice/demo-model";
import { parseTask } from "@coppice/evaluate";

export const model = modelPath;
export const backend = (options: Record<string, unknown> = {}) => ({
  module: new URL("fixtures/backend.mjs", import.meta.url).href,
  export: "fake",
  options,
});
export const task = parseTask(readFileSync(taskPath("arith", "search"), "utf8"), "arith.jsonl");
export const limit = 24;

/** Plans of which many begin alike; none keeps just experts 0 and 1 in layer 0. */
export function samplePlans(of: MoeModel, count: number): Plan[] {
  const rng = Rng.fromSeed(3);
  const subsets = [
    [0, 1, 2],
    [4, 2, 7, 1],
    [3, 5],
  ];
  return Array.from({ length: count }, () =>
    createPlan(
      of,
      of.layers
        .filter(() => rng.bernoulli(0.7))
        .map(({ index }) => ({ layer: index, experts: rng.pick(subsets) })),
    ),
  );
}

/** The plan on which the fake backend crashes or throws when told to. */
export const cursedPlan = (of: MoeModel) => createPlan(of, [{ layer: 0, experts: [0, 1] }]);
