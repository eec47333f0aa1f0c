import { CoppiceError } from "@coppice/core";
import type { DeviceSource } from "./device.js";
import { webgpuPlugin } from "./plugin.js";

export { createWebgpuBackend, type WebgpuSettings } from "./backend.js";
export type { DeviceSource, Engine } from "./device.js";
export type { OnnxRuntime } from "./onnx-runtime.js";
export type { WebgpuOptions } from "./plugin.js";

/** What npm `webgpu`, the bindings of Dawn, exports. */
interface Dawn {
  create(options: readonly string[]): GPU;
  /** Classes and constants that are globals of a page. */
  readonly globals: Readonly<Record<string, unknown>>;
}

/** Without both, Dawn hides `shader-f16` on NVIDIA's Vulkan driver. */
const toggles = ["enable-dawn-features=allow_unsafe_apis,vulkan_enable_f16_on_nvidia"];

/**
 * Devices of npm `webgpu`, which a user installs besides.
 * @throws COPPICE_BACKEND_UNAVAILABLE when it is not installed, or has no build for this platform
 */
export async function nodeDevices(): Promise<DeviceSource> {
  let dawn: Dawn;
  try {
    const name: string = "webgpu";
    dawn = (await import(name)) as Dawn;
  } catch (cause) {
    throw new CoppiceError(
      "COPPICE_BACKEND_UNAVAILABLE",
      `the package webgpu cannot be loaded: ${String(cause)}`,
      {
        cause,
        hint: "npm install webgpu",
      },
    );
  }
  const gpu = dawn.create(toggles);
  return {
    async onnxRuntime(device) {
      const { nodeOnnxRuntime } = await import("./node-onnx-runtime.js");
      return nodeOnnxRuntime(gpu, dawn.globals, device);
    },
    name: "npm webgpu",
    wgslLanguageFeatures: gpu.wgslLanguageFeatures,
    requestAdapter: () => gpu.requestAdapter({ powerPreference: "high-performance" }),
  };
}

/** Runs models on the GPU of this machine, through npm `webgpu`. */
export const webgpu = webgpuPlugin(nodeDevices);
