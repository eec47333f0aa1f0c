import { parseTask, type Task } from "@coppice/evaluate";
import { describe, expect, it } from "vitest";
import { sampleSets } from "../src/search-job/sample-sets.js";

const taskOf = (name: string, questions: readonly (string | number)[]): Task =>
  parseTask(
    questions.map((question) => JSON.stringify({ prompt: `${question} =`, answer: " 1" })).join("\n"),
    name,
  );
const range = (count: number, from = 0) => Array.from({ length: count }, (_, i) => i + from);
const questions = (task: Task | undefined) =>
  task?.samples.map((sample) => ("prompt" in sample ? sample.prompt.slice(0, -2) : ""));

describe("sampleSets", () => {
  const task = taskOf("task.jsonl", range(50));
  const holdout = taskOf("holdout.jsonl", range(30, 100));

  it("searches on the limit, chooses on as many further samples, and reports the whole holdout", () => {
    const sets = sampleSets({ task, holdout, limit: 20, seed: 1 });
    expect(questions(sets.search)).toEqual(range(20).map(String));
    expect(questions(sets.choice)).toEqual(range(20, 20).map(String));
    expect(questions(sets.report)).toEqual(range(30, 100).map(String));
    expect(new Set(Object.values(sets.hashes)).size).toBe(3);
    expect(sampleSets({ task, holdout, limit: 20, seed: 2 }).hashes).toEqual(sets.hashes);
  });

  it("chooses on what is left, however little, and has nothing where nothing is left", () => {
    expect(questions(sampleSets({ task, holdout, limit: 47, seed: 1 }).choice)).toEqual(["47", "48", "49"]);
    for (const limit of [undefined, 50, 80]) {
      const sets = sampleSets({ task, holdout, limit, seed: 1 });
      expect(sets.choice).toBeUndefined();
      expect(sets.hashes).not.toHaveProperty("choice");
    }
  });

  it("never chooses on questions of the search or of the holdout", () => {
    const repeated = taskOf("task.jsonl", [...range(10), 3, 4, 105, 106, "new"]);
    const sets = sampleSets({ task: repeated, holdout, limit: 10, seed: 1 });
    expect(questions(sets.choice)).toEqual(["new"]);
    expect(() => sampleSets({ task: taskOf("task.jsonl", [105, 1]), holdout, seed: 1 })).toThrow(
      expect.objectContaining({ code: "COPPICE_TASK_OVERLAP" }),
    );
  });

  it("sets 30 % of the questions aside when there is no holdout file, and reports all of them", () => {
    const sets = sampleSets({ task, limit: 20, seed: 1 });
    expect(sets.report.samples).toHaveLength(15);
    expect(sets.search.samples).toHaveLength(20);
    expect(sets.choice?.samples).toHaveLength(15);
    const all = [sets.search, sets.choice, sets.report].flatMap((part) => questions(part) ?? []);
    expect(new Set(all).size).toBe(50);
  });
});
