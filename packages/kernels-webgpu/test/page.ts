import { Gpu } from "@coppice/kernels-webgpu";
import { kernelCases } from "./kernel-cases.js";

let device: Promise<Gpu> | undefined;

async function open(): Promise<Gpu> {
  const adapter = await navigator.gpu.requestAdapter();
  if (!adapter) throw new Error("the page has no adapter");
  const requiredFeatures = (["timestamp-query"] as const).filter((feature) => adapter.features.has(feature));
  return new Gpu(await adapter.requestDevice({ requiredFeatures }));
}

/** Runs one case, and checks that it leaves no buffer behind. */
export async function run(key: string): Promise<void> {
  device ??= open();
  const gpu = await device;
  const found = kernelCases.find((one) => one.key === key);
  if (!found) throw new Error(`no case is called ${key}`);
  const worst = await found.run(gpu);
  // Written so that NaN counts as a difference.
  if (!(worst <= found.tolerance))
    throw new Error(`differs by ${worst}, at most ${found.tolerance} is allowed`);
  if (gpu.memory.buffers > 0) throw new Error(`${gpu.memory.buffers} buffers are left`);
}
