// node packages/backend-webgpu/bench/gpu-cases.mjs [--only text] [--cycles 200] [--verbose]
//
// What tests cannot run on a software adapter, or not in their time: the whole conformance suite, runs in float16 alone and together,
// and loads and disposals in a row after which no buffer may be alive. On the GPU of this machine; needs npm `webgpu`. `--only` runs
// the cases whose name has this text. A case that the device lacks something for is skipped, and it says what. Exits with 1 when
// one fails.
import { parseArgs } from "node:util";
import { createWebgpuBackend, nodeDevices } from "@coppice/backend-webgpu/node";
import { backendConformance, randomModel } from "@coppice/plugin-kit";
import { fixtures } from "@coppice/plugin-kit/node";
import { cycleName, runCycles } from "../test/cycle-case.mjs";
import { halfName, lacksUnits, runHalfCase } from "../test/half-case.mjs";

const { values } = parseArgs({
  options: {
    only: { type: "string", default: "" },
    cycles: { type: "string", default: "200" },
    verbose: { type: "boolean", default: false },
  },
});
const cycles = Number(values.cycles);
const source = await nodeDevices();
const backend = createWebgpuBackend(source);
// Keeps the device, so that kernels are compiled and checked once.
const kept = await backend.load(randomModel({ seed: 1, layers: 1 }));
const cases = [
  { name: cycleName(cycles), run: () => runCycles(source, cycles) },
  { name: halfName, run: () => runHalfCase(source) },
  ...backendConformance(() => backend, { fixtures }),
].filter(({ name }) => name.includes(values.only));
const count = { passed: 0, skipped: 0, failed: 0 };
for (const { name, run } of cases) {
  const begin = performance.now();
  try {
    await run();
    count.passed++;
    if (values.verbose) console.log(`passed ${name} (${(performance.now() - begin).toFixed(0)} ms)`);
  } catch (error) {
    const lacks = String(error).includes(lacksUnits);
    count[lacks ? "skipped" : "failed"]++;
    console.log(lacks ? `skipped ${name}: ${lacksUnits}` : `failed ${name}: ${error.stack}`);
  }
}
await kept.dispose();
console.log(
  `${count.passed} of ${cases.length} cases passed, ${count.skipped} skipped, ${count.failed} failed`,
);
process.exit(count.failed > 0 ? 1 : 0);
