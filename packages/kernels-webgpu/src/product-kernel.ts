import { isGated } from "./activation-code.js";
import type { Gpu } from "./gpu.js";
import type { Kernel } from "./kernel.js";
import type { MatmulParam } from "./matmul-code.js";
import { type TileOptions, tileColumns } from "./tile-frame.js";
import { tiledKey, tiledSource } from "./tiled-code.js";
import { unitsBytes, unitsKey, unitsSource } from "./units-code.js";

/** A kernel, and columns and rows of y of one of its workgroups. */
export interface ProductKernel {
  readonly kernel: Kernel<MatmulParam>;
  readonly across: number;
  readonly down: number;
}

/** The kernel that multiplies tiles: on matrix units where float16 is asked for and the device has them. */
export function productKernel(gpu: Gpu, options: TileOptions, half: boolean): ProductKernel {
  const { tile } = options;
  const { matrixUnits: units } = gpu;
  const room = gpu.device.limits.maxComputeWorkgroupStorageSize;
  const onUnits = half && units && tile > 16 && unitsBytes(tile, units) <= room;
  const kernel = onUnits
    ? gpu.kernel(unitsKey(options), () => unitsSource(options, units))
    : gpu.kernel(tiledKey(options), () => tiledSource(options));
  return { kernel, across: tileColumns(tile, isGated(options.activation)), down: tile };
}
