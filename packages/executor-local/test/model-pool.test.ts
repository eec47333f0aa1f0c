import { type Progress, RunEmitter } from "@coppice/core";
import { parseTask, type WrittenSamples } from "@coppice/evaluate";
import { createModelPool, type PoolStatisticsOptions } from "@coppice/executor-local";
import { describe, expect, it } from "vitest";
import { backend, limit, model, samplePlans, task } from "./setup.js";

const pool = (workers: number) =>
  createModelPool({ model, backend: backend(), workers, isolation: workers === 2 ? "process" : "thread" });

describe("createModelPool", () => {
  it("gives the same scores, statistics and logits for any number of workers", async () => {
    const results: unknown[] = [];
    for (const workers of [1, 2, 3]) {
      await using own = await pool(workers);
      const [plan] = samplePlans(own.model, 1);
      const text = parseTask("Some words to be perplexed by. ".repeat(40), "t.txt");
      results.push({
        exact: await own.evaluateTask({ task, limit, ...(plan && { plan }) }),
        likelihood: await own.evaluateTask({ task, limit, metric: "log-likelihood" }),
        perplexity: await own.evaluateTask({ task: text }),
        statistics: await own.collectStatistics({ task, limit, sample: { limit: 20, with: ["inputs"] } }),
        generations: await own.collectStatistics({ task, limit: 6, kind: "generations", maxTokens: 5 }),
        prompts: (await own.collectStatistics({ task, limit, kind: "prompts" })).tokens,
        logits: await own.logits([Int32Array.of(1, 2, 3), Int32Array.of(4, 5)], { all: true }),
      });
    }
    expect(results[1]).toEqual(results[0]);
    expect(results[2]).toEqual(results[0]);
    expect(results[0]).toMatchObject({
      exact: { metric: "exact-match", samples: limit },
      perplexity: { metric: "perplexity", value: expect.any(Number) },
      statistics: {
        sources: [{ name: "arith.jsonl", sequences: limit, kind: "answers", options: { limit } }],
        sample: { priorities: { length: 20 } },
      },
      generations: { sources: [{ sequences: 6, kind: "generations", options: { limit: 6, maxTokens: 5 } }] },
      logits: [{ length: 3 }, { length: 2 }],
    });
  });

  it("tells how far it is, and streams generated text", async () => {
    await using own = await pool(2);
    const emitter = new RunEmitter();
    const seen: Progress[] = [];
    emitter.on("progress", (progress) => seen.push(progress));
    await own.evaluateTask({ task, limit, emitter });
    expect(seen.map(({ done }) => done)).toEqual([...seen.map(({ done }) => done)].sort((a, b) => a - b));
    expect(seen.at(-1)).toMatchObject({ done: limit, total: limit, unit: "samples" });
    seen.length = 0;
    await own.collectStatistics({ task, limit, emitter });
    expect(seen.at(-1)).toMatchObject({ done: seen.at(-1)?.total, unit: "tokens" });

    const parts: string[] = [];
    const generated = await own.generate("Compute: 1 + 1 =", {
      maxTokens: 12,
      onToken: (_, text) => parts.push(text),
    });
    expect(parts.join("")).toBe(generated.text);
    expect(generated.tokens).toHaveLength(12);
    expect((await own.generate("Compute: 1 + 1 =", { maxTokens: 12 })).text).toBe(generated.text);
  });

  it("continues prompts with what the model writes, up to a limit", async () => {
    await using own = await pool(1);
    const tokens = async (options: Partial<PoolStatisticsOptions>) =>
      (await own.collectStatistics({ task, limit, ...options })).tokens;
    const prompts = await tokens({ kind: "prompts" });
    expect(await tokens({ kind: "generations", maxTokens: 3 })).toBe(prompts + 3 * limit);
    const text = parseTask("Some words.", "t.txt");
    for (const kind of ["generations", "prompts"] as const) {
      await expect(own.collectStatistics({ task: text, kind })).rejects.toMatchObject({
        code: "COPPICE_USAGE",
        message: expect.stringContaining(kind),
      });
    }
  });

  it("writes samples, the same for any number of workers", async () => {
    const results: unknown[] = [];
    for (const workers of [1, 3]) {
      await using own = await pool(workers);
      const emitter = new RunEmitter();
      const seen: Progress[] = [];
      emitter.on("progress", (progress) => seen.push(progress));
      results.push(await own.writeSamples({ task, limit, tokens: 1_500, seed: 2, emitter }));
      expect(seen.at(-1)).toMatchObject({ done: 1_500, total: 1_500, unit: "tokens" });
      await expect(own.writeSamples({ task, tokens: 0 })).rejects.toMatchObject({ code: "COPPICE_USAGE" });
      await expect(own.writeSamples({ task, signal: AbortSignal.abort() })).rejects.toMatchObject({
        code: "COPPICE_ABORTED",
      });
    }
    expect(results[1]).toEqual(results[0]);
    const { sequences, work } = results[0] as WrittenSamples;
    const written = sequences.reduce((sum, { length }) => sum + length, 0);
    expect(written).toBeGreaterThanOrEqual(1_500);
    expect(work.tokenLayers).toBeGreaterThan(0);
  });

  it("passes errors on with their code, hint and details", async () => {
    await using own = await pool(2);
    await expect(own.evaluateTask({ task, metric: "choice-accuracy" })).rejects.toMatchObject({
      name: "CoppiceError",
      code: "COPPICE_TASK_METRIC",
      details: { form: "generation" },
    });
    await expect(own.logits([Int32Array.of(5_000)])).rejects.toMatchObject({ code: "COPPICE_USAGE" });
    await expect(own.generate("", {})).rejects.toMatchObject({ code: "COPPICE_USAGE" });
    await own.dispose();
    await expect(own.generate("a")).rejects.toMatchObject({ code: "COPPICE_BACKEND_DISPOSED" });
  });
});
