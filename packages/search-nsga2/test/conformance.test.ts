import { searchConformance, separableLandscape, toyModel } from "@coppice/plugin-kit";
import { nsga2 } from "@coppice/search-nsga2";
import { describe, test } from "vitest";
import { groupedModel } from "./toys.js";

const model = toyModel();
const { values } = separableLandscape(model);
const scores = new Map([
  ["perfect", values],
  ["inverse", values.map((row) => row.map((value) => -value))],
]);

describe.each([
  ["any number of experts", { keep: 2 }, {}],
  ["from criteria", { keep: 1, population: 12 }, { scores }],
  ["one criterion, uniform", { keep: 2, most: 5, counts: "uniform", seeds: ["inverse"] }, { scores }],
  ["one number of experts", { keep: 3, most: 3, leastTopK: 2 }, { keep: 3 }],
  ["groups", { keep: 2 }, { model: groupedModel(4, 2) }],
  ["groups, uniform", { keep: 2, counts: "uniform" }, { model: groupedModel(4, 2) }],
] as const)("%s", (_, options, settings) => {
  const whole = { model, keep: null, ...settings };
  for (const { name, run } of searchConformance(nsga2, options, whole)) test(name, run);
});
