import { searchConformance, separableLandscape, toyModel } from "@coppice/plugin-kit";
import { exhaustive, greedy, oneShot, random } from "@coppice/search-baselines";
import { describe, test } from "vitest";
import { groupedModel } from "./toys.js";

const model = toyModel();
const scores = new Map([
  ["worst", separableLandscape(model).values.map((row) => row.map((value) => -value))],
]);
const groups = groupedModel(2, 1);

describe("random", () => {
  for (const { name, run } of searchConformance(random, { keep: 3 }, { model })) test(name, run);
});

describe("one-shot", () => {
  const settings = { model, scores, random: false, improves: false };
  for (const { name, run } of searchConformance(oneShot, { keep: 3, criterion: "worst" }, settings)) {
    test(name, run);
  }
});

describe.each([
  ["swap", { keep: 3 }, { model }],
  ["swap from a criterion", { keep: 3, start: "worst", topK: 1 }, { model, scores }],
  ["backward", { keep: 3, mode: "backward" }, { model }],
  ["backward from a criterion", { keep: 3, mode: "backward", start: "worst" }, { model, scores }],
  ["backward in groups", { keep: 4, mode: "backward" }, { model: groups }],
  ["forward", { keep: 4, mode: "forward" }, { model }],
  ["forward from a criterion", { keep: 4, mode: "forward", start: "worst" }, { model, scores }],
  ["forward in groups", { keep: 4, mode: "forward" }, { model: groups }],
  ["one expert of each layer", { keep: 1, topK: 1, mode: "backward" }, { model }],
] as const)("greedy: %s", (_, options, settings) => {
  for (const { name, run } of searchConformance(greedy, options, settings)) test(name, run);
});

describe.each([
  ["progressive", { keep: 3 }, { model }],
  ["independent", { keep: 3, mode: "independent" }, { model }],
  ["from a criterion", { keep: 3, start: "worst" }, { model, scores }],
  // The first subset that fits happens to be the best.
  ["in groups", { keep: 4 }, { model: groups, improves: false }],
] as const)("exhaustive: %s", (_, options, settings) => {
  const whole = { ...settings, random: false };
  for (const { name, run } of searchConformance(exhaustive, options, whole)) test(name, run);
});
