import type { RunResult } from "@coppice/core";
import { expect, it } from "vitest";
import { RunQueue } from "../src/run-queue.js";

/** A queue of numbers, which are their own sizes; what is recorded ends when it is told to. */
function queueOf(most: number) {
  const groups: number[][] = [];
  const ends: (() => void)[] = [];
  const queue = new RunQueue<number>({
    most,
    size: (job) => job,
    together(jobs) {
      let sum = 0;
      const end = jobs.findIndex((job) => {
        sum += job;
        return sum > most;
      });
      return end < 0 ? jobs.length : Math.max(1, end);
    },
    async record(jobs) {
      if (jobs.includes(13)) throw new Error("unlucky");
      groups.push([...jobs]);
      await new Promise<void>((resolve) => ends.push(resolve));
      return async () => jobs.map((job): RunResult => ({ boundaries: new Map(), tokenLayers: job }));
    },
  });
  return { queue, groups, ends, add: (job: number, signal?: AbortSignal) => queue.add(job, signal) };
}

const turn = () => new Promise((resolve) => setImmediate(() => setImmediate(resolve)));

it("computes together what is asked for in one turn, and begins before when a group is full", async () => {
  const { groups, ends, add } = queueOf(10);
  const results = [4, 4].map((job) => add(job));
  await Promise.resolve();
  expect(groups).toEqual([]);
  results.push(add(4));
  await Promise.resolve();
  await Promise.resolve();
  // The third does not fit: it waits for others of its turn, and then for the recording of the first two.
  expect(groups).toEqual([[4, 4]]);
  results.push(add(5), add(6));
  ends[0]?.();
  await turn();
  expect(groups).toEqual([
    [4, 4],
    [4, 5],
  ]);
  ends[1]?.();
  await turn();
  expect(groups[2]).toEqual([6]);
  ends[2]?.();
  expect((await Promise.all(results)).map(({ tokenLayers }) => tokenLayers)).toEqual([4, 4, 4, 5, 6]);
});

it("records one group at a time, and nothing besides work that wants to be alone", async () => {
  const { queue, groups, ends, add } = queueOf(10);
  const done: string[] = [];
  const first = add(7);
  await turn();
  const alone = queue.alone(async () => void done.push(`alone after ${groups.length}`));
  const second = add(8);
  await turn();
  expect([groups, done]).toEqual([[[7]], []]);
  ends[0]?.();
  await turn();
  expect([groups, done]).toEqual([[[7], [8]], ["alone after 1"]]);
  ends[1]?.();
  await Promise.all([first, alone, second]);
});

it("drops runs that were aborted, and refuses what waits in the end", async () => {
  const { queue, groups, ends, add } = queueOf(10);
  const stop = new AbortController();
  const aborted = expect(add(3, stop.signal)).rejects.toMatchObject({ code: "COPPICE_ABORTED" });
  const kept = add(4);
  stop.abort();
  await turn();
  await aborted;
  expect(groups).toEqual([[4]]);
  await Promise.all([expect(add(13)).rejects.toThrow("unlucky"), turn().then(() => ends[0]?.())]);
  expect((await kept).tokenLayers).toBe(4);
  const late = expect(add(5)).rejects.toThrow("gone");
  await queue.end(new Error("gone"));
  await late;
});
