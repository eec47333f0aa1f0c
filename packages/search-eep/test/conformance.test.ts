import { searchConformance, separableLandscape, toyModel } from "@coppice/plugin-kit";
import { eep } from "@coppice/search-eep";
import { describe, test } from "vitest";

const model = toyModel();
const { values } = separableLandscape(model);
const scores = new Map([
  ["perfect", values],
  ["inverse", values.map((row) => row.map((value) => -value))],
]);

describe.each([
  ["default", { keep: 3 }, {}],
  ["default with seeds", { keep: 3 }, { scores }],
  ["default in two groups", { keep: 3, groups: 2 }, {}],
  ["default without merging", { keep: 4, mergeEvaluations: 0 }, {}],
  ["default mapped", { keep: 3, router: "mapped" }, {}],
  ["default, merging only", { keep: 6 }, {}],
  ["default with one expert per token", { keep: 2, topK: 1 }, {}],
  ["default with one expert of each layer", { keep: 1, topK: 1 }, { scores }],
  ["paper", { keep: 3, preset: "paper" }, {}],
  ["released", { keep: 3, preset: "released" }, { evaluations: 400 }],
  ["released mapped", { keep: 3, preset: "released", router: "mapped" }, { evaluations: 400 }],
] as const)("%s", (_, options, settings) => {
  for (const { name, run } of searchConformance(eep, options, { model, ...settings })) test(name, run);
});
