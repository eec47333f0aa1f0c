import { searchConformance, separableLandscape, toyModel } from "@coppice/plugin-kit";
import { greedy, oneShot, random } from "@coppice/search-baselines";
import { describe, test } from "vitest";

const model = toyModel();
const scores = new Map([
  ["worst", separableLandscape(model).values.map((row) => row.map((value) => -value))],
]);

describe("random", () => {
  for (const { name, run } of searchConformance(random, { keep: 3 }, { model })) test(name, run);
});

describe("one-shot", () => {
  const settings = { model, scores, random: false, improves: false };
  for (const { name, run } of searchConformance(oneShot, { keep: 3, criterion: "worst" }, settings)) {
    test(name, run);
  }
});

describe("greedy", () => {
  for (const { name, run } of searchConformance(greedy, { keep: 3 }, { model })) test(name, run);
});

describe("greedy from a criterion", () => {
  const options = { keep: 3, start: "worst", topK: 1 };
  for (const { name, run } of searchConformance(greedy, options, { model, scores })) test(name, run);
});
