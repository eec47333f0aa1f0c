import { createPlan } from "@coppice/core";
import { parseTask } from "@coppice/evaluate";
import { randomModel } from "@coppice/plugin-kit";
import { expect, test } from "vitest";
import { crossFittedScore } from "../src/search-job/cross-fitted.js";
import type { SearchRun } from "../src/search-job/search-job.js";

const { model } = randomModel({ layers: 1 });
const plans = [0, 1].map((expert) => createPlan(model, [{ layer: 0, experts: [expert, 2] }]));
const lines = Array.from({ length: 5 }, (_, i) => JSON.stringify({ prompt: `${i}`, answer: "yes" }));

/** A run whose model answers the prompts that `right` names for a plan, and what it was asked. */
function runOf(text: string, right: (prompt: number, plan: number) => boolean) {
  const asked: string[] = [];
  const search = parseTask(text, "t.jsonl");
  const evaluateTask = async (request: {
    task: { samples: { prompt: string }[] };
    metric: string;
    plan: (typeof plans)[number];
  }) => {
    const plan = plans.indexOf(request.plan);
    const prompts = request.task.samples.map(({ prompt }) => prompt);
    asked.push(`${plan}: ${prompts.join(" ")}`);
    return { scores: Float64Array.from(prompts, (prompt) => Number(right(Number(prompt), plan))) };
  };
  const tasks = [{ name: "t", metric: "exact-match", sets: { search } }];
  return { run: { job: { tasks, chat: false }, pool: { evaluateTask } } as unknown as SearchRun, asked };
}

test("scores each half of the search samples under the fit to the other", async () => {
  const { run, asked } = runOf(lines.join("\n"), (prompt, plan) => plan === 0 || prompt === 4);
  const score = await crossFittedScore(run, plans);
  // The first plan was fitted to the samples 0, 2 and 4.
  expect(asked).toEqual(["0: 1 3", "1: 0 2 4"]);
  expect(score).toMatchObject({ value: 3 / 5, samples: 5 });
  expect(score?.low).toBeLessThan(3 / 5);
  expect(score?.high).toBeGreaterThan(3 / 5);
});

test("has nothing to say of plain text, or of a fit without halves", async () => {
  const text = runOf('{"text": "one"}\n{"text": "two"}', () => true);
  expect(await crossFittedScore(text.run, plans)).toBeUndefined();
  const { run, asked } = runOf(lines.join("\n"), () => true);
  expect(await crossFittedScore(run, plans.slice(0, 1))).toBeUndefined();
  expect([...text.asked, ...asked]).toEqual([]);
});
