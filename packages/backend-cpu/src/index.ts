export { type CpuSettings, createCpuBackend } from "./backend.js";
export { type CpuProducts, openProducts } from "./matrix-products.js";
export { type CpuOptions, cpu } from "./plugin.js";
