import { createPlan, type Executor, noWork, type Plan } from "@coppice/core";
import { randomModel } from "@coppice/plugin-kit";
import { memoryJournal } from "@coppice/search";
import { describe, expect, it } from "vitest";
import { openFolds } from "../src/search-job/fit-folds.js";
import type { FitTexts } from "../src/search-job/fit-texts.js";
import type { SearchRun } from "../src/search-job/search-job.js";

const { model } = randomModel({ layers: 2, experts: 4, topK: 2 });
const plans: readonly Plan[] = [createPlan(model)];
/** Text i has i + 1 tokens, sample i scores i. */
const texts = (by: FitTexts["by"]): FitTexts => ({
  by,
  texts: Array.from({ length: 5 }, (_, i) => ({ ids: new Int32Array(i + 1) })),
  work: noWork,
});

/** A run whose workers give every sample its number; counts the samples that they score. */
function fakeRun(form: "generation" | "text") {
  let scored = 0;
  let disposed = 0;
  const search = { form, name: "task", samples: Array.from({ length: 5 }, (_, i) => ({ prompt: `${i}` })) };
  const dispose = async () => {
    disposed++;
  };
  const run = {
    job: { tasks: [{ name: "task", sets: { search } }], opened: { checkpoint: { model } } },
    pool: {
      async scorer({ task }: { task: typeof search }): Promise<Executor> {
        const scores = Float64Array.from(task.samples, ({ prompt }) => Number(prompt));
        return {
          preferredBatch: 1,
          async evaluate(all) {
            scored += all.length * scores.length;
            return all.map(() => ({ scores }));
          },
          work: () => noWork,
          dispose,
          [Symbol.asyncDispose]: dispose,
        };
      },
    },
    folder: { journal: memoryJournal() },
  } as unknown as SearchRun;
  return { run, scored: () => scored, disposed: () => disposed };
}

const lengths = (texts: readonly { ids: Int32Array }[]) => texts.map(({ ids }) => ids.length);

describe("folds of a fit", () => {
  it("judges what is fitted to one half by the other half, and runs no other sample", async () => {
    const { run, scored, disposed } = fakeRun("generation");
    const { folds, ...rest } = await openFolds(run, texts("samples"));
    expect(folds.map((fold) => lengths(fold.texts))).toEqual([
      [1, 3, 5],
      [2, 4],
    ]);
    expect(await folds[0]?.score(plans)).toEqual([(1 + 3) / 2]);
    expect(scored()).toBe(2);
    expect(await folds[1]?.score(plans)).toEqual([(0 + 2 + 4) / 3]);
    expect(scored()).toBe(5);
    // The same plan again is in the journal, each half by itself.
    expect(await folds[0]?.score(plans)).toEqual([2]);
    expect(scored()).toBe(5);
    await rest[Symbol.asyncDispose]();
    expect(disposed()).toBe(2);
  });

  it("judges halves of the windows where samples are texts", async () => {
    const { run } = fakeRun("text");
    await using opened = await openFolds(run, texts("samples"));
    expect(lengths(opened.folds[0]?.texts ?? [])).toEqual([1, 3, 5]);
    expect(await Promise.all(opened.folds.map(({ score }) => score(plans)))).toEqual([[2], [2]]);
  });

  it("judges texts that the model wrote by all samples", async () => {
    const { run } = fakeRun("generation");
    await using opened = await openFolds(run, texts("written"));
    expect(opened.folds.map((fold) => lengths(fold.texts))).toEqual([[1, 2, 3, 4, 5]]);
    expect(await opened.folds[0]?.score(plans)).toEqual([2]);
  });
});
