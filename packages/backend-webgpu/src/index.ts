export { createWebgpuBackend, type WebgpuSettings } from "./backend.js";
export type { DeviceSource, Engine } from "./device.js";
export type { OnnxRuntime } from "./onnx-runtime.js";
export { navigatorDevices, type WebgpuOptions, webgpu } from "./plugin.js";
