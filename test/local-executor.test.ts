import { readFileSync } from "node:fs";
import { createPlan, type MoeModel, type PlanScores, Rng, type WorkCounters } from "@coppice/core";
import { modelPath, taskPath } from "@coppice/demo-model";
import { parseTask } from "@coppice/evaluate";
import { createModelPool } from "@coppice/executor-local";
import { describe, expect, it } from "vitest";

const task = parseTask(readFileSync(taskPath("arith", "search"), "utf8"), "arith.jsonl");
const backend = { module: import.meta.resolve("@coppice/backend-cpu"), export: "cpu" };

/** Kept, merged and re-routed experts, with beginnings in common. */
function plans(model: MoeModel) {
  const rng = Rng.fromSeed(8);
  const layers = model.layers.map(({ index }) => {
    const experts = rng.sample(8, 4).sort();
    const merge = experts.map((expert) =>
      Array.from({ length: 8 }, (_, j) => (j === expert ? 0.9 : 0.1 * rng.uniform())),
    );
    return index % 2 ? { layer: index, experts } : { layer: index, experts, merge };
  });
  return [0, 3, 5, 1, 6].map((count) => createPlan(model, layers.slice(0, count)));
}

describe("the local executor on the CPU backend", () => {
  it("gives the same bits for any number of workers, with and without reuse", async () => {
    const results: PlanScores[][] = [];
    const work: WorkCounters[] = [];
    for (const [workers, prefixCacheBytes] of [
      [1, 0],
      [2, 2 ** 28],
      [3, 2 ** 28],
    ] as const) {
      await using pool = await createModelPool({ model: modelPath, backend, workers });
      await using executor = await pool.scorer({
        task,
        limit: 60,
        objective: "likelihood",
        prefixCacheBytes,
      });
      results.push(await executor.evaluate(plans(pool.model)));
      work.push(executor.work());
    }
    // Even without reuse of layers, equal beginnings and what no answer needs of the last layer are left out.
    const [plain, cached, shared] = work as [WorkCounters, WorkCounters, WorkCounters];
    expect(plain.avoidedTokenLayers).toBeGreaterThan(plain.tokenLayers / 10);
    expect(cached.tokenLayers).toBeLessThan(0.9 * plain.tokenLayers);
    expect(shared).toEqual(cached);
    const asked = plain.tokenLayers + plain.avoidedTokenLayers;
    expect(cached.tokenLayers + cached.avoidedTokenLayers).toBe(asked);
    expect(results[1]).toEqual(results[0]);
    expect(results[2]).toEqual(results[0]);
    const means = results[0]?.map(
      ({ scores }) => scores.reduce((sum, score) => sum + score, 0) / scores.length,
    );
    expect(new Set(means).size).toBe(5);
    expect(means?.[0]).toBeGreaterThan(0.6);
  });
});
