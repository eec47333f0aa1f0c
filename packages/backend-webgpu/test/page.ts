import { createWebgpuBackend } from "@coppice/backend-webgpu";
import { randomModel } from "@coppice/plugin-kit";
import { conformanceCases } from "./conformance-cases.js";
import { cycleName, runCycles } from "./cycle-case.mjs";
import { deviceCases } from "./device-cases.js";
import { engineCases, engineName, engineWhole, onnxRuntimeFile, watchedRuntime } from "./engine-cases.js";
import { halfName, runHalfCase } from "./half-case.mjs";

const source = { name: "navigator.gpu", requestAdapter: () => navigator.gpu.requestAdapter() };
const backend = createWebgpuBackend(source);
// A runner that stays keeps the device, so that kernels are compiled once for all cases.
const kept = backend.load(randomModel({ seed: 1, layers: 1 }));
const seen = new Set<string>();
/** By a path that is only known when it runs, so that it is fetched and not bundled. */
const onnxRuntime = async () => watchedRuntime(await import(["", onnxRuntimeFile].join("/")), seen);
const ort = createWebgpuBackend({ ...source, onnxRuntime }, { engine: "ort" });
const ortCases = conformanceCases(() => ort).map(({ name, run }) => ({ name: engineName(name), run }));
const cases = [
  ...conformanceCases(() => backend),
  ...ortCases,
  ...engineCases({ ...source, onnxRuntime }, seen, async () => {
    await ortCases.find(({ name }) => name === engineName(engineWhole))?.run();
  }),
  ...deviceCases(source, backend),
];

export async function run(name: string): Promise<void> {
  await kept;
  const cycles = Number.parseInt(name, 10);
  if (name === cycleName(cycles)) return runCycles(source, cycles);
  if (name === halfName) return runHalfCase(source);
  const run = cases.find((one) => one.name === name)?.run;
  if (!run) throw new Error(`no case is called ${name}`);
  await run();
}
