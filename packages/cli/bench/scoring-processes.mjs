import { fork } from "node:child_process";
import { cpu } from "@coppice/backend-cpu";
import { createEvaluator, partBatches, shardBatches } from "@coppice/evaluate";

/** One worker process of the cpu backend: scores its share of the samples under every plan that it is sent. */
export async function serveScores(checkpoint, task, share) {
  const [index, count, threads] = share.split("/").map(Number);
  const runner = await (await cpu.create({ threads, mergeCacheBytes: 2 ** 28 }, undefined)).load(checkpoint);
  const parts = partBatches(task).map(
    (batches, part) => shardBatches(batches, count)[(index + part) % count] ?? [],
  );
  const evaluator = createEvaluator({ runner, task, parts, prefixCacheBytes: 2 ** 28 / count });
  let last = Promise.resolve();
  process.on("message", ({ id, plan }) => {
    last = last.then(async () => {
      const { scores, correct } = await evaluator.evaluate(plan);
      process.send({
        id,
        samples: [...evaluator.samples],
        scores: [...scores],
        correct: [...(correct ?? [])],
      });
    });
  });
  process.on("disconnect", () => process.exit());
  process.send({ ready: true });
}

/**
 * Scores plans in worker processes, which run this same script with `--worker` (`serveScores`).
 * @param samples how many the task has
 */
export async function scoreInProcesses(batches, samples, workers, threads) {
  const children = await Promise.all(
    Array.from(
      { length: workers },
      (_, i) =>
        new Promise((resolve) => {
          const child = fork(process.argv[1], [
            ...process.argv.slice(2),
            "--worker",
            `${i}/${workers}/${threads}`,
          ]);
          child.once("message", () => resolve(child));
        }),
    ),
  );
  const waiting = new Map();
  const results = [];
  for (const child of children) {
    child.on("message", ({ id, samples: own, scores, correct }) => {
      const entry = waiting.get(id);
      for (const [i, sample] of own.entries()) {
        entry.scores[sample] = scores[i];
        if (correct.length > 0) entry.correct[sample] = correct[i];
      }
      if (--entry.left === 0) entry.resolve(entry);
    });
  }
  let id = 0;
  const evaluate = (plan) =>
    new Promise((resolve) => {
      const own = id++;
      waiting.set(own, {
        scores: new Float64Array(samples),
        correct: new Uint8Array(samples),
        left: children.length,
        resolve,
      });
      for (const child of children) child.send({ id: own, plan });
    });
  await Promise.all([batches[0][0], batches.at(-1).at(-1)].map(evaluate));
  const begin = performance.now();
  for (const batch of batches) results.push(...(await Promise.all(batch.map(evaluate))));
  const seconds = (performance.now() - begin) / 1000;
  for (const child of children) child.disconnect();
  return { seconds, results };
}
