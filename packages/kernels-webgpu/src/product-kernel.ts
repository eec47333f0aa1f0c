import type { Gpu } from "./gpu.js";
import type { Kernel } from "./kernel.js";
import type { MatmulParam } from "./matmul-code.js";
import type { TileOptions } from "./tile-frame.js";
import { tiledKey, tiledSource } from "./tiled-code.js";
import { unitsBytes, unitsKey, unitsSource } from "./units-code.js";

/** The kernel that multiplies tiles: on matrix units where float16 is asked for and the device has them. */
export function productKernel(gpu: Gpu, options: TileOptions, half: boolean): Kernel<MatmulParam> {
  const { matrixUnits: units } = gpu;
  const room = gpu.device.limits.maxComputeWorkgroupStorageSize;
  if (half && units && options.tile > 16 && unitsBytes(options.tile, units) <= room) {
    return gpu.kernel(unitsKey(options), () => unitsSource(options, units));
  }
  return gpu.kernel(tiledKey(options), () => tiledSource(options));
}
