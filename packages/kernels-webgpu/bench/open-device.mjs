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
  return { gpu: new Gpu(device), name: `${vendor} ${name || description}` };
}

/**
 * Median milliseconds of `repeats` runs after two to warm up, by the device's own clock where it has one. Each run records the
 * work `times` times.
 */
export async function median(gpu, record, { times = 1, repeats = 7 } = {}) {
  const found = [];
  for (let i = 0; i < repeats + 2; i++) {
    await gpu.idle();
    const start = performance.now();
    const nanoseconds = await gpu.time(() => {
      for (let t = 0; t < times; t++) record();
    });
    found.push((nanoseconds === undefined ? performance.now() - start : nanoseconds / 1e6) / times);
  }
  return found.slice(2).sort((a, b) => a - b)[repeats >> 1];
}
