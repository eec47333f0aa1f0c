import { createWebgpuBackend, type DeviceSource } from "@coppice/backend-webgpu";
import { createPlan, moeLayers } from "@coppice/core";
import { randomModel } from "@coppice/plugin-kit";
import { watched } from "./watched-source.js";

/** Devices that are opened one after the other; a fresh one compiles every kernel, which software takes seconds for. */
const rounds = 2;

export const cycleName = (cycles: number) =>
  `${cycles} loads, texts and disposals leave no buffer and no device alive`;

/** What `name` asks for, or undefined where it is another case. */
export function cycleCase(source: DeviceSource, name: string): (() => Promise<void>) | undefined {
  const cycles = Number.parseInt(name, 10);
  return name === cycleName(cycles) ? () => runCycles(source, cycles) : undefined;
}

/** Loads a model, writes with it, as it is and merged, and disposes of it, again and again. */
async function runCycles(source: DeviceSource, cycles: number): Promise<void> {
  const own = watched(source);
  const loaded = randomModel({ seed: 3, layers: 1, hidden: 16, vocab: 24 });
  const merged = createPlan(
    loaded.model,
    moeLayers(loaded.model).map(({ index: layer, feedForward }) => {
      const experts = Array.from({ length: feedForward.experts.length / 2 }, (_, expert) => expert);
      const merge = experts.map((kept) =>
        feedForward.experts.map((_, expert) => (expert === kept ? 1 : 0.1)),
      );
      return { layer, experts, merge };
    }),
  );
  for (let round = 0; round < rounds; round++) {
    const backend = createWebgpuBackend(own);
    // Keeps the device.
    const first = await backend.load(loaded);
    let held: number | undefined;
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
