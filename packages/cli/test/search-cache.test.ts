import { readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { coppiceJson } from "./cli.js";
import { copyModel, workshop, writeTask } from "./workshop.js";

const folder = workshop();
const model = copyModel(join(folder, "model"));
const task = writeTask(join(folder, "task.jsonl"), 72);
const holdout = writeTask(join(folder, "holdout.jsonl"), 30, 1000);
const cache = join(folder, "scores");

async function search(out: string, ...more: string[]) {
  const words = [
    "search",
    model,
    "--task",
    task,
    "--holdout",
    holdout,
    "--keep",
    "4",
    "--limit",
    "64",
    "--no-reconstruct",
  ];
  const result = await coppiceJson([...words, "--budget", "16", "--out", join(folder, out), ...more]);
  const { seconds: _, searching: __, work, run: ___, report: ____, planFile: _____, ...rest } = result;
  return { work: (work as { tokenLayers: number }).tokenLayers, rest };
}

test("a search finds the scores of other runs, and takes the same course with them", async () => {
  const plain = await search("plain");
  const first = await search("first", "--cache", cache);
  expect(first).toEqual(plain);
  expect(first.work).toBeGreaterThan(0);
  const second = await search("second", "--cache", cache, "--workers", "1");
  expect(second.rest).toEqual(plain.rest);
  expect(second.work).toBe(0);
  const journal = (out: string) => readFileSync(join(folder, out, "journal.jsonl"), "utf8");
  expect(journal("second")).toBe(journal("plain"));
  const other = await search("other", "--cache", cache, "--objective", "exact-match");
  expect(other.work).toBeGreaterThan(0);
});
