export { createWebgpuBackend, type WebgpuSettings } from "./backend.js";
export type { DeviceSource } from "./device.js";
export { type WebgpuOptions, webgpu } from "./plugin.js";
