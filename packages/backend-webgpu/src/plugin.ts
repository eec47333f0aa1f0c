import { definePlugin } from "@coppice/core";
import * as v from "valibot";
import { createWebgpuBackend } from "./backend.js";
import type { DeviceSource, Engine } from "./device.js";

export interface WebgpuOptions {
  /**
   * In what products of many tokens are multiplied: `f16` needs the feature `shader-f16` of the device; sums are float32.
   * @default "f32"
   */
  readonly precision?: "f32" | "f16";
  /**
   * What computes: `own`, our kernels alone; `ort`, the WebGPU provider of ONNX Runtime where it has an operator that is right.
   * @default "own"
   */
  readonly engine?: Engine;
}

declare module "@coppice/core" {
  interface BackendPlugins {
    webgpu: WebgpuOptions;
  }
}

/** The plugin on devices of a source. */
export function webgpuPlugin(source: () => DeviceSource | Promise<DeviceSource>) {
  return definePlugin({
    kind: "backend",
    name: "webgpu",
    contract: 1,
    summary: "Own WebGPU kernels on any GPU, in Node (npm webgpu) and in browsers.",
    options: v.strictObject({
      precision: v.exactOptional(v.picklist(["f32", "f16"]), "f32"),
      engine: v.exactOptional(v.picklist(["own", "ort"]), "own"),
    }),
    create: async (settings) => createWebgpuBackend(await source(), settings),
  });
}

/**
 * Devices of a browser. The engine `ort` needs ONNX Runtime besides, which a page adds so that others need not bundle it:
 * `{ ...navigatorDevices, onnxRuntime: () => import("onnxruntime-web/webgpu") }`.
 */
export const navigatorDevices: DeviceSource = {
  name: "navigator.gpu",
  get wgslLanguageFeatures() {
    return globalThis.navigator?.gpu?.wgslLanguageFeatures;
  },
  async requestAdapter() {
    const gpu: GPU | undefined = globalThis.navigator?.gpu;
    return gpu ? gpu.requestAdapter({ powerPreference: "high-performance" }) : null;
  },
};

/** Runs models on the GPU of a browser. In Node, take it from `@coppice/backend-webgpu/node`. */
export const webgpu = webgpuPlugin(() => navigatorDevices);
