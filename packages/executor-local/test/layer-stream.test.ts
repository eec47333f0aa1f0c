import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { StreamEstimate } from "@coppice/calibrate";
import { type Progress, RunEmitter } from "@coppice/core";
import { collectStatisticsByLayers, createModelPool } from "@coppice/executor-local";
import { afterAll, describe, expect, it } from "vitest";
import { backend, limit, model, task } from "./setup.js";

const folder = mkdtempSync(join(tmpdir(), "coppice-layers-"));
afterAll(() => rmSync(folder, { recursive: true }));

const sample = { limit: 20, with: ["inputs"] } as const;

async function inMemory() {
  await using pool = await createModelPool({ model, backend: backend(), workers: 2, isolation: "thread" });
  return await pool.collectStatistics({ task, limit, sample });
}

describe("collectStatisticsByLayers", () => {
  it("gives the statistics of a pool, also after its worker ended", async () => {
    const expected = await inMemory();
    const emitter = new RunEmitter();
    const progress: Progress[] = [];
    emitter.on("progress", (event) => progress.push(event));
    const estimates: StreamEstimate[] = [];
    const work = join(folder, "work");
    const found = await collectStatisticsByLayers({
      model,
      backend: backend({ crash: "once", marker: join(folder, "marker"), crashFrom: 1 }),
      task,
      limit,
      sample,
      work,
      emitter,
      onEstimate: (estimate) => estimates.push(estimate),
    });
    expect(found).toEqual(expected);
    // Once per worker; the second begins with the layer at which the first one ended.
    expect(estimates.map(({ measured }) => measured.layers.from)).toEqual([0, 1]);
    expect(progress.at(-1)).toMatchObject({ unit: "tokens x layers", etaMs: 0 });
    expect(readdirSync(work)).toContain("calibration.json");
  });

  it("takes the memory that it is given, and passes refusals on", async () => {
    const options = { model, backend: backend(), task, limit, isolation: "thread" } as const;
    const whole = await collectStatisticsByLayers({
      ...options,
      work: join(folder, "a"),
      memory: 4e9,
      sample,
    });
    expect(whole).toEqual(await inMemory());
    const little = collectStatisticsByLayers({ ...options, work: join(folder, "b"), memory: 1e6 });
    await expect(little).rejects.toMatchObject({ code: "COPPICE_USAGE" });
    const other = collectStatisticsByLayers({ ...options, work: join(folder, "a") });
    await expect(other).rejects.toMatchObject({ code: "COPPICE_RUN_IDENTITY" });
    const stopped = { ...options, work: join(folder, "c"), signal: AbortSignal.abort() };
    await expect(collectStatisticsByLayers(stopped)).rejects.toMatchObject({ code: "COPPICE_ABORTED" });
  });
});
