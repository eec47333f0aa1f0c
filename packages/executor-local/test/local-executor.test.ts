import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createPlan, type PlanScores } from "@coppice/core";
import { parseTask } from "@coppice/evaluate";
import { createLocalExecutor, createModelPool, type Isolation } from "@coppice/executor-local";
import { afterEach, describe, expect, it } from "vitest";
import { backend, cursedPlan, limit, model, samplePlans, task } from "./setup.js";

const folder = mkdtempSync(join(tmpdir(), "coppice-executor-"));
let markers = 0;
const marker = () => join(folder, `marker-${markers++}`);
afterEach(() => {
  if (markers > 100) rmSync(folder, { recursive: true });
});

const pool = (workers: number, options: Record<string, unknown> = {}, isolation: Isolation = "thread") =>
  createModelPool({ model, backend: backend(options), workers, isolation });

describe("scores", () => {
  it("are the same bits for any number of workers, either isolation, with and without reuse", async () => {
    const results: PlanScores[][] = [];
    for (const [workers, isolation, prefixCacheBytes] of [
      [1, "thread", 0],
      [2, "process", 2 ** 24],
      [3, "thread", 2 ** 22],
      [4, "thread", 2 ** 24],
    ] as const) {
      await using own = await pool(workers, {}, isolation);
      await using executor = await own.scorer({ task, limit, prefixCacheBytes });
      const plans = samplePlans(own.model, 8);
      results.push(await executor.evaluate(plans));
      const { tokenLayers, avoidedTokenLayers } = executor.work();
      const all = (await tokensOf(own)) * own.model.layers.length * plans.length;
      expect(tokenLayers + avoidedTokenLayers).toBe(all);
      if (prefixCacheBytes === 0) expect(avoidedTokenLayers).toBe(0);
      else expect(avoidedTokenLayers).toBeGreaterThan(0);
    }
    expect(results[0]?.[0]?.scores).toHaveLength(limit);
    expect(new Set(results[0]?.map(({ scores }) => scores.join())).size).toBeGreaterThan(4);
    for (const other of results.slice(1)) expect(other).toEqual(results[0]);
  });

  it("keep all workers busy, where a part is a single batch too", async () => {
    await using own = await pool(2);
    // Four parts of some 120 tokens.
    await using executor = await own.scorer({ task, limit: 64 });
    const before = own.busyMs();
    expect(before).toHaveLength(2);
    await executor.evaluate(samplePlans(own.model, 4));
    const [first = 0, second = 0] = own
      .busyMs()
      .map((milliseconds, i) => milliseconds - (before[i] as number));
    expect(Math.min(first, second)).toBeGreaterThan(0);
  });

  it("belong to their scorer", async () => {
    await using own = await pool(2);
    const plans = samplePlans(own.model, 2);
    const first = await own.scorer({ task, limit: 8, objective: "exact-match" });
    const second = await own.scorer({ task, limit: 12 });
    const [[a], [b]] = await Promise.all([first.evaluate(plans), second.evaluate(plans)]);
    expect([a?.scores.length, b?.scores.length]).toEqual([8, 12]);
    expect([...(a as PlanScores).scores].every((score) => score === 0 || score === 1)).toBe(true);
    await first.dispose();
    await expect(first.evaluate(plans)).rejects.toMatchObject({ code: "COPPICE_BACKEND_DISPOSED" });
    expect((await second.evaluate(plans))[0]).toEqual(b);
  });

  it("come without right answers for text", async () => {
    await using executor = await createLocalExecutor({
      model,
      backend: backend(),
      workers: 2,
      isolation: "thread",
      task: parseTask("One text, long enough to have some tokens.", "t.txt"),
    });
    await using own = await pool(1);
    const [result] = await executor.evaluate([createPlan(own.model)]);
    expect(result?.correct).toBeUndefined();
    expect(result?.scores).toHaveLength(1);
  });
});

describe("abort", () => {
  it("settles at once, and leaves the executor usable", async () => {
    await using own = await pool(2, { delayMs: 150 });
    await using executor = await own.scorer({ task, limit });
    const plans = samplePlans(own.model, 6);
    const controller = new AbortController();
    const begin = performance.now();
    const stopped = executor.evaluate(plans, { signal: controller.signal });
    setTimeout(() => controller.abort(), 20);
    await expect(stopped).rejects.toMatchObject({ code: "COPPICE_ABORTED" });
    const settled = performance.now() - begin;
    const [again] = await executor.evaluate(plans.slice(0, 1));
    // Four batches of 150 ms for each of six plans would have followed.
    expect(settled).toBeLessThan(1_500);
    expect(again?.scores).toHaveLength(limit);
    await expect(executor.evaluate(plans, { signal: AbortSignal.abort() })).rejects.toMatchObject({
      code: "COPPICE_ABORTED",
    });
    await expect(own.evaluateTask({ task, limit, signal: AbortSignal.timeout(20) })).rejects.toMatchObject({
      code: "COPPICE_ABORTED",
    });
  });

  it("ends a start", async () => {
    const signal = AbortSignal.timeout(1);
    await expect(createModelPool({ model, backend: backend(), workers: 2, signal })).rejects.toMatchObject({
      code: "COPPICE_ABORTED",
    });
  });
});

describe.each<Isolation>(["process", "thread"])("a worker that ends (%s)", (isolation) => {
  it("is started again, with the same results", async () => {
    await using sound = await pool(2, {}, isolation);
    await using expected = await sound.scorer({ task, limit });
    await using own = await pool(2, { crash: "once", marker: marker() }, isolation);
    await using executor = await own.scorer({ task, limit });
    const plans = [...samplePlans(own.model, 3), cursedPlan(own.model), ...samplePlans(own.model, 2)];
    expect(await executor.evaluate(plans)).toEqual(await expected.evaluate(plans));
    const work = executor.work();
    expect(work.tokenLayers).toBeGreaterThan(0);
  });

  it("is given up when it ends every time, which costs the others nothing", async () => {
    await using own = await pool(2, { crash: "always" }, isolation);
    await using executor = await own.scorer({ task, limit });
    const cursed = executor.evaluate([cursedPlan(own.model)]);
    await expect(cursed).rejects.toMatchObject({
      code: "COPPICE_BACKEND_CRASHED",
      retryable: false,
      message: expect.stringContaining("ended 3 times while it was to evaluate a plan"),
    });
    if (isolation === "process") {
      await expect(cursed).rejects.toThrow(/exit code 7; it wrote: the sky is falling/);
    }
    expect(await executor.evaluate(samplePlans(own.model, 2))).toHaveLength(2);
  });
});

describe.each<Isolation>(["process", "thread"])("a device that is lost (%s)", (isolation) => {
  it("is opened anew by a new worker, with the same results", async () => {
    await using sound = await pool(2, {}, isolation);
    await using expected = await sound.scorer({ task, limit });
    await using own = await pool(2, { lose: "once", marker: marker() }, isolation);
    await using executor = await own.scorer({ task, limit });
    const plans = [...samplePlans(own.model, 3), cursedPlan(own.model), ...samplePlans(own.model, 2)];
    expect(await executor.evaluate(plans)).toEqual(await expected.evaluate(plans));
  });

  it("ends the work by its name when it is lost every time, and can be tried again", async () => {
    await using own = await pool(1, { lose: "always" }, isolation);
    await using executor = await own.scorer({ task, limit });
    await expect(executor.evaluate([cursedPlan(own.model)])).rejects.toMatchObject({
      code: "COPPICE_BACKEND_LOST",
      retryable: true,
    });
    expect(await executor.evaluate(samplePlans(own.model, 2))).toHaveLength(2);
  });
});

describe("dispose", () => {
  it.each<Isolation>(["process", "thread"])("leaves nothing behind (%s)", async (isolation) => {
    const before = resources();
    const executor = await createLocalExecutor({
      model,
      backend: backend({ delayMs: 100 }),
      workers: 3,
      isolation,
      task,
      limit,
    });
    const planModel = await modelOf();
    const running = executor.evaluate(samplePlans(planModel, 4));
    const failed = expect(running).rejects.toMatchObject({ code: "COPPICE_BACKEND_DISPOSED" });
    await new Promise((resolve) => setTimeout(resolve, 30));
    await executor.dispose();
    await failed;
    await executor.dispose();
    await expect(executor.evaluate([])).resolves.toEqual([]);
    await expect(executor.evaluate(samplePlans(planModel, 1))).rejects.toMatchObject({
      code: "COPPICE_BACKEND_DISPOSED",
    });
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(resources()).toEqual(before);
  });
});

describe("bad input", () => {
  it.each([
    ["a module that is not there", { module: "@coppice/nowhere" }, "COPPICE_BACKEND_UNAVAILABLE"],
    ["an export that is no plugin", { ...backend(), export: "notAPlugin" }, "COPPICE_PLUGIN_INVALID"],
    ["an export that is not there", { ...backend(), export: "gpu" }, "COPPICE_PLUGIN_INVALID"],
    ["options that are not allowed", backend({ speed: 9 }), "COPPICE_PLUGIN_OPTIONS"],
    ["a backend that fails to load", backend({ loadError: "no luck" }), "COPPICE_INTERNAL"],
  ])("%s", async (_, source, code) => {
    await expect(createModelPool({ model, backend: source, workers: 1 })).rejects.toMatchObject({ code });
  });

  it("finds the only plugin of a module", async () => {
    await using own = await createModelPool({
      model,
      backend: { module: backend().module },
      workers: 1,
      isolation: "thread",
    });
    expect(own.model.family).toBe("mixtral");
  });

  it("a model that is not there, and absurd numbers of workers", async () => {
    for (const workers of [1, undefined]) {
      await expect(
        createModelPool({ model: join(folder, "none"), backend: backend(), ...(workers && { workers }) }),
      ).rejects.toMatchObject({ code: "COPPICE_FORMAT_MISSING_FILE" });
    }
    for (const workers of [0, 1.5, Number.NaN]) {
      await expect(createModelPool({ model, backend: backend(), workers })).rejects.toMatchObject({
        code: "COPPICE_USAGE",
      });
    }
  });

  it("samples that do not fit, and errors of a run", async () => {
    await using own = await pool(2, { throwOn: true });
    const long = parseTask(JSON.stringify({ prompt: "word ".repeat(5_000), answer: "x" }), "long.jsonl");
    await expect(own.scorer({ task: long })).rejects.toMatchObject({
      code: "COPPICE_TASK_TOO_LONG",
      details: { line: 1, context: 4096 },
    });
    const text = parseTask("some text to read", "t.txt");
    await expect(own.scorer({ task: text, objective: "likelihood" })).rejects.toMatchObject({
      code: "COPPICE_TASK_METRIC",
    });
    await using executor = await own.scorer({ task, limit });
    await expect(
      executor.evaluate([...samplePlans(own.model, 2), cursedPlan(own.model)]),
    ).rejects.toMatchObject({
      code: "COPPICE_INTERNAL",
      message: expect.stringContaining("numbers that no one expected"),
    });
    expect(await executor.evaluate(samplePlans(own.model, 1))).toHaveLength(1);
  });
});

function resources(): string[] {
  return process.getActiveResourcesInfo().filter((name) => /Process|Worker|MessagePort|Pipe/.test(name));
}

async function modelOf() {
  await using own = await pool(1);
  return own.model;
}

/** Tokens of the samples, told by a scorer without reuse. */
async function tokensOf(own: Awaited<ReturnType<typeof pool>>): Promise<number> {
  await using executor = await own.scorer({ task, limit, prefixCacheBytes: 0 });
  await executor.evaluate([createPlan(own.model)]);
  return executor.work().tokenLayers / own.model.layers.length;
}
