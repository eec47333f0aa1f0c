import { createWebgpuBackend } from "@coppice/backend-webgpu";
import { randomModel } from "@coppice/plugin-kit";
import { keptHalf } from "./kept-half.mjs";
import { watched } from "./watched-source.mjs";

/** Devices that are opened one after the other; a fresh one compiles every kernel, which software takes seconds for. */
const rounds = 2;

/** @param {number} cycles */
export const cycleName = (cycles) =>
  `${cycles} loads, texts and disposals leave no buffer and no device alive`;

/**
 * Loads a model, writes with it, as it is and merged, and disposes of it, again and again.
 * @param {import("@coppice/backend-webgpu").DeviceSource} source
 * @param {number} cycles
 */
export async function runCycles(source, cycles) {
  const own = watched(source);
  const loaded = randomModel({ seed: 3, layers: 1, hidden: 16, vocab: 24 });
  const merged = keptHalf(loaded.model, 0.1);
  for (let round = 0; round < rounds; round++) {
    const backend = createWebgpuBackend(own);
    // Keeps the device.
    const first = await backend.load(loaded);
    /** @type {number | undefined} */
    let held;
    for (let cycle = 0; cycle < cycles / rounds; cycle++) {
      const runner = await backend.load(loaded);
      const cache = runner.createCache(1);
      for (const [at, plan] of [undefined, undefined, merged, undefined].entries()) {
        const positions = [Int32Array.of(0)];
        await runner.run({ sequences: [Int32Array.of(3 + at)], positions, cache, ...(plan && { plan }) });
      }
      // Every other cache is left to its runner.
      if (cycle % 2 === 0) cache.dispose();
      await runner.dispose();
      held ??= own.alive.buffers;
      if (own.alive.buffers !== held)
        throw new Error(
          `${own.alive.buffers} buffers are alive after cycle ${cycle}, ${held} were after the first`,
        );
    }
    await first.dispose();
    const { buffers, devices } = own.alive;
    if (buffers > 0 || devices > 0) throw new Error(`${buffers} buffers and ${devices} devices are left`);
  }
  if (own.devices.length !== rounds) throw new Error(`${own.devices.length} devices were opened`);
}
