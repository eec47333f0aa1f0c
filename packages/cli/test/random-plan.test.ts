import { parsePlan } from "@coppice/core";
import { randomModel } from "@coppice/plugin-kit";
import { expect, test } from "vitest";
import { randomPlans } from "../src/search-job/random-plan.js";

const groups = { count: 4, keep: 2, score: "top2" } as const;
const { model } = randomModel({ layers: 2, experts: 16, topK: 6, router: { order: "sigmoid-topk", groups } });

test("random plans fit the groups of routers, also with fewer experts than the model's own top-k", () => {
  const plans = randomPlans(model, { keep: 4, topK: 2, count: 5, seed: 1 });
  expect(new Set(plans.map((plan) => JSON.stringify(plan))).size).toBeGreaterThan(1);
  for (const plan of plans) {
    expect(parsePlan(plan, model).layers).toMatchObject([{ topK: 2 }, { topK: 2 }]);
    for (const { experts } of plan.layers) expect(experts).toHaveLength(4);
  }
});
