import { Gpu } from "@coppice/kernels-webgpu";
import { kernelCases } from "./kernel-cases.js";

/** One device, with kernels as those of graphics devices, also without packed bytes, and as those of software. */
let opened: Promise<Readonly<Record<"parallel" | "unpacked" | "serial", Gpu>>> | undefined;

async function open() {
  const adapter = await navigator.gpu.requestAdapter();
  if (!adapter) throw new Error("the page has no adapter");
  const requiredFeatures = (["timestamp-query"] as const).filter((feature) => adapter.features.has(feature));
  const device = await adapter.requestDevice({ requiredFeatures });
  const serial = new Gpu(device);
  if (!serial.serial) throw new Error("the adapter is not seen to be software");
  const packsBytes = navigator.gpu.wgslLanguageFeatures.has("packed_4x8_integer_dot_product");
  if (!packsBytes) throw new Error("the page does not multiply packed bytes");
  const unpacked = new Gpu(device, { serial: false });
  return { parallel: new Gpu(device, { serial: false, packsBytes }), unpacked, serial };
}

/** Runs one case, `<shape of the device> <key>`, and checks that it leaves no buffer behind. */
export async function run(name: string): Promise<void> {
  opened ??= open();
  const gpus = await opened;
  const [shape, key] = name.split(/ (.*)/s) as [keyof typeof gpus, string];
  const gpu = gpus[shape];
  const found = kernelCases.find((one) => one.key === key);
  if (!found) throw new Error(`no case is called ${key}`);
  const worst = await found.run(gpu);
  // Written so that NaN counts as a difference.
  if (!(worst <= found.tolerance))
    throw new Error(`differs by ${worst}, at most ${found.tolerance} is allowed`);
  if (gpu.memory.buffers > 0) throw new Error(`${gpu.memory.buffers} buffers are left`);
}
