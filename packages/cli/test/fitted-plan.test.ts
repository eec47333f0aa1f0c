import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createPlan } from "@coppice/core";
import { randomModel } from "@coppice/plugin-kit";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { readFittedPlan } from "../src/search-job/fitted-plan.js";

const { model } = randomModel({ layers: 2 });
const fitted = {
  from: "key",
  plan: createPlan(model, [{ layer: 0, experts: [0, 1, 3] }]),
  before: 0.5,
  layers: [
    { layer: 0, choice: { target: "stream", ridge: 0.1 }, score: 0.75 },
    { layer: 1, choice: null, score: Number.NEGATIVE_INFINITY },
  ],
  texts: "written",
  tokens: 4000,
};

describe("readFittedPlan", () => {
  let folder: string;
  let path: string;
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "coppice-fitted-"));
    path = join(folder, "reconstruction.json");
  });
  afterAll(() => rm(folder, { recursive: true }));

  test("gives what was fitted to the plan, and nothing for another plan or before a fit", async () => {
    expect(await readFittedPlan(path, "key", model)).toBeUndefined();
    await writeFile(path, JSON.stringify(fitted));
    expect(await readFittedPlan(path, "key", model)).toEqual(fitted);
    expect(await readFittedPlan(path, "another", model)).toBeUndefined();
    const crossed = { ...fitted, crossFitted: { value: 0.5, low: 0.25, high: 0.75, samples: 4 } };
    await writeFile(path, JSON.stringify(crossed));
    expect(await readFittedPlan(path, "key", model)).toEqual(crossed);
  });

  test.each([
    ["half of the text", JSON.stringify(fitted).slice(0, 100), /JSON/],
    ["another kind of value", "7", /its top: Invalid type: Expected Object/],
    ["no score", JSON.stringify({ ...fitted, layers: [{ layer: 0, choice: null }] }), /layers\.0\.score: /],
    ["an unknown target", JSON.stringify(fitted).replace("stream", "moon"), /layers\.0\.choice\.target: /],
    [
      "a broken plan",
      JSON.stringify({ ...fitted, plan: { format: "coppice.plan" } }),
      /version is undefined/,
    ],
  ])("refuses %s, and says what to delete", async (_, text, reason) => {
    await writeFile(path, text);
    await expect(readFittedPlan(path, "key", model)).rejects.toMatchObject({
      code: "COPPICE_RUN_FILE",
      message: expect.stringMatching(reason),
      hint: expect.stringContaining("delete this file"),
      details: { path },
    });
    await expect(readFittedPlan(path, "key", model)).rejects.toThrow(`${path} is damaged: `);
  });
});
