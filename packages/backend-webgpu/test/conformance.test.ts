import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { packFloats } from "@coppice/core";
import { intoMemory } from "@coppice/plugin-kit";
import { type FixtureName, loadFixture } from "@coppice/plugin-kit/node";
import { afterAll, beforeAll, describe, expect, it, test } from "vitest";
import { hasChromium, openWebgpuPage } from "../../../tools/webgpu-page.mjs";
import { conformanceCases, type FixtureText, fixtureNames, isChosen } from "./conformance-cases.js";
import { cycleName } from "./cycle-case.mjs";
import { deviceCases } from "./device-cases.js";
import { engineCases, engineChosen, engineName, onnxRuntimeFile } from "./engine-cases.js";
import { halfName, lacksUnits } from "./half-case.mjs";

const unused = () => Promise.reject(new Error("cases run in the page"));
const names = conformanceCases(unused).map(({ name }) => name);
/** `COPPICE_WEBGPU_CYCLES=200` for the slow check. */
const cycles = Number(process.env["COPPICE_WEBGPU_CYCLES"] ?? 4);
const chosen = [
  cycleName(cycles),
  ...names.filter(isChosen),
  ...deviceCases({ name: "", requestAdapter: unused }).map(({ name }) => name),
  ...engineChosen.map(engineName),
  ...engineCases({ name: "", requestAdapter: unused, onnxRuntime: unused }, new Set(), unused).map(
    ({ name }) => name,
  ),
];

const runtimeFolder = dirname(createRequire(import.meta.url).resolve("onnxruntime-web/webgpu"));
const runtimeFiles = [onnxRuntimeFile, "ort-wasm-simd-threaded.asyncify.wasm"];

/** What the page fetches of a fixture. */
async function fixtureText(name: string): Promise<string> {
  const { model, weights, golden } = await loadFixture(name as FixtureName);
  const { tensors } = await intoMemory(model, weights);
  const text: FixtureText = {
    model,
    tensors: Object.fromEntries(Array.from(tensors, ([key, values]) => [key, packFloats(values)])),
    sequences: golden.sequences.map((ids) => [...ids]),
    logits: packFloats(golden.logits),
    greedy: [...golden.greedy],
    routers: golden.routers.map(({ layer, logits, gates, experts }) => ({
      layer,
      logits: packFloats(logits),
      gates: packFloats(gates),
      experts: [...experts],
    })),
  };
  return JSON.stringify(text);
}

// Needs Chromium; skipped where there is none.
describe.skipIf(!hasChromium)("the webgpu backend on a software adapter", () => {
  let page: Awaited<ReturnType<typeof openWebgpuPage>>;
  beforeAll(async () => {
    const known = new Set<string>(fixtureNames);
    page = await openWebgpuPage(fileURLToPath(new URL("page.ts", import.meta.url)), (path) =>
      known.has(path)
        ? fixtureText(path)
        : runtimeFiles.includes(path)
          ? readFile(join(runtimeFolder, path))
          : undefined,
    );
  }, 300_000);
  afterAll(() => page?.close());

  for (const name of chosen) test(name, () => page.run(name), 300_000);

  test(halfName, async ({ skip }) => {
    const problem = await page.run(halfName).then(() => "", String);
    if (problem.includes(lacksUnits)) skip(lacksUnits);
    expect(problem).toBe("");
  }, 300_000);
});

it("chooses cases of every kind, and every family", () => {
  for (const name of fixtureNames) expect(chosen.some((one) => one.startsWith(`${name}: logits`))).toBe(true);
  expect(chosen.length).toBeGreaterThan(25);
});
