import { createPlan } from "@coppice/core";
import { searchConformance, separableLandscape, toyModel } from "@coppice/plugin-kit";
import { cmaEs } from "@coppice/search-cma-es";
import { describe, test } from "vitest";

const model = toyModel();
const { values } = separableLandscape(model);
const scores = new Map([
  ["perfect", values],
  ["inverse", values.map((row) => row.map((value) => -value))],
]);
const plan = createPlan(model, [
  { layer: 1, experts: [0, 1, 2] },
  {
    layer: 3,
    experts: [3, 5, 4],
    topK: 1,
    merge: [
      [0, 0, 0.5, 0.5, 0, 0],
      [0, 0, 0, 0, 0, 1],
      [0.25, 0, 0, 0, 0.75, 0],
    ],
  },
]);

describe.each([
  ["random experts", { keep: 3 }, {}],
  ["one criterion", { keep: 3, start: "inverse" }, { scores }],
  ["the best criterion", { keep: 2 }, { scores }],
  ["a plan", { plan }, { keep: null }],
  ["merging only, diagonal", { keep: 6 }, {}],
  ["one expert per token", { keep: 1, topK: 1, population: 6, sigma: 0.2, bound: 0.5 }, {}],
] as const)("%s", (_, options, settings) => {
  for (const { name, run } of searchConformance(cmaEs, options, { model, ...settings })) test(name, run);
});
