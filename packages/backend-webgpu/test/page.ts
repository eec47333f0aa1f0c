import { createWebgpuBackend } from "@coppice/backend-webgpu";
import { randomModel } from "@coppice/plugin-kit";
import { conformanceCases } from "./conformance-cases.js";
import { cycleCase } from "./cycle-case.js";
import { deviceCases } from "./device-cases.js";

const source = { name: "navigator.gpu", requestAdapter: () => navigator.gpu.requestAdapter() };
const backend = createWebgpuBackend(source);
// A runner that stays keeps the device, so that kernels are compiled once for all cases.
const kept = backend.load(randomModel({ seed: 1, layers: 1 }));
const cases = [...conformanceCases(() => backend), ...deviceCases(source, backend)];

export async function run(name: string): Promise<void> {
  await kept;
  const run = cycleCase(source, name) ?? cases.find((one) => one.name === name)?.run;
  if (!run) throw new Error(`no case is called ${name}`);
  await run();
}
