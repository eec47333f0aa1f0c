export { type CpuSettings, createCpuBackend } from "./backend.js";
export { type CpuOptions, cpu } from "./plugin.js";
