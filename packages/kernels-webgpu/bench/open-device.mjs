// A device of npm `webgpu` (npm install webgpu), with all limits and features of its adapter that the kernels use.
import { create } from "webgpu";
import { Gpu } from "../dist/index.js";

/** Dawn's instances end when nothing refers to them, and their devices with them. */
const instances = [];

export async function openDevice() {
  // Both toggles are needed for shader-f16 on NVIDIA's Vulkan driver.
  const gpu = create(["enable-dawn-features=allow_unsafe_apis,vulkan_enable_f16_on_nvidia"]);
  instances.push(gpu);
  const adapter = await gpu.requestAdapter({ powerPreference: "high-performance" });
  if (!adapter) throw new Error("npm webgpu has no adapter");
  const limits = [
    "maxBufferSize",
    "maxStorageBufferBindingSize",
    "maxStorageBuffersPerShaderStage",
    "maxComputeWorkgroupStorageSize",
  ];
  const device = await adapter.requestDevice({
    requiredFeatures: ["shader-f16", "timestamp-query", "chromium-experimental-subgroup-matrix"].filter(
      (feature) => adapter.features.has(feature),
    ),
    requiredLimits: Object.fromEntries(limits.map((limit) => [limit, adapter.limits[limit]])),
  });
  const { vendor, device: name, description } = adapter.info;
  const packsBytes = gpu.wgslLanguageFeatures.has("packed_4x8_integer_dot_product");
  return {
    gpu: new Gpu(device, { adapterInfo: adapter.info, packsBytes }),
    name: `${vendor} ${name || description}`,
  };
}

const clock = async (gpu, record, times) => {
  await gpu.idle();
  const start = performance.now();
  const nanoseconds = await gpu.time(() => {
    for (let t = 0; t < times; t++) record();
  });
  return (nanoseconds === undefined ? performance.now() - start : nanoseconds / 1e6) / times;
};

/**
 * Median milliseconds of `repeats` runs, by the device's own clock where it has one. The device first works for a quarter of a
 * second, since an idle one is slow; each run records the work as often as takes ten milliseconds, since clocks count in steps
 * (of 0.07 ms on an H200).
 */
export async function median(gpu, record, repeats = 7) {
  const until = performance.now() + 250;
  let once = await clock(gpu, record, 1);
  do once = Math.min(once, await clock(gpu, record, 4));
  while (performance.now() < until);
  const times = Math.max(1, Math.min(1000, Math.ceil(10 / once)));
  const found = [];
  for (let i = 0; i < repeats; i++) found.push(await clock(gpu, record, times));
  return found.sort((a, b) => a - b)[repeats >> 1];
}
