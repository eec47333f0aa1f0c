import { CoppiceError } from "@coppice/core";
import { Gpu, type GpuOptions } from "@coppice/kernels-webgpu";

/** Where devices come from: `navigator.gpu` of a browser, or what npm `webgpu` makes in Node. */
export interface DeviceSource {
  /** What it is, for messages: "navigator.gpu". */
  readonly name: string;
  /** @returns null where there is no adapter */
  requestAdapter(): Promise<GPUAdapter | null>;
}

/** A use of a device that several runners share. */
export interface DeviceUse {
  readonly gpu: Gpu;
  /** Ends the use; the last one destroys the device. May be called again. */
  release(): void;
}

interface Shared {
  readonly gpu: Gpu;
  uses: number;
}

/** The device of a source, opened at its first use and destroyed after its last. */
export class SharedDevice {
  readonly #source: DeviceSource;
  readonly #options: GpuOptions;
  #opening: Promise<Shared> | undefined;

  constructor(source: DeviceSource, options: GpuOptions = {}) {
    this.#source = source;
    this.#options = options;
  }

  /** A device that was lost is opened anew. @throws COPPICE_BACKEND_UNAVAILABLE */
  async use(): Promise<DeviceUse> {
    let shared = await this.#open();
    if (shared.gpu.broken) {
      this.#opening = undefined;
      shared = await this.#open();
    }
    shared.uses++;
    let ended = false;
    return {
      gpu: shared.gpu,
      release: () => {
        if (ended) return;
        ended = true;
        if (--shared.uses > 0) return;
        if (this.#current === shared) this.#opening = undefined;
        shared.gpu.dispose();
        shared.gpu.device.destroy();
      },
    };
  }

  #current: Shared | undefined;

  async #open(): Promise<Shared> {
    this.#opening ??= openDevice(this.#source, this.#options).then((gpu) => {
      this.#current = { gpu, uses: 0 };
      return this.#current;
    });
    try {
      return await this.#opening;
    } catch (error) {
      this.#opening = undefined;
      throw error;
    }
  }
}

/** Limits that are asked for as high as the adapter has them. */
const limits = [
  "maxBufferSize",
  "maxStorageBufferBindingSize",
  "maxStorageBuffersPerShaderStage",
  "maxComputeWorkgroupStorageSize",
] as const;

async function openDevice(source: DeviceSource, options: GpuOptions): Promise<Gpu> {
  const adapter = await source.requestAdapter();
  if (!adapter) {
    throw new CoppiceError("COPPICE_BACKEND_UNAVAILABLE", `${source.name} has no adapter for WebGPU`, {
      hint: "check the driver and that WebGPU is enabled, or use the cpu backend",
    });
  }
  const wanted = [
    "shader-f16",
    "timestamp-query",
    "chromium-experimental-subgroup-matrix",
  ] as GPUFeatureName[];
  try {
    const device = await adapter.requestDevice({
      requiredFeatures: wanted.filter((feature) => adapter.features.has(feature)),
      requiredLimits: Object.fromEntries(limits.map((limit) => [limit, adapter.limits[limit]])),
    });
    return new Gpu(device, { ...options, adapterInfo: adapter.info });
  } catch (cause) {
    throw new CoppiceError(
      "COPPICE_BACKEND_UNAVAILABLE",
      `${source.name} opened no device on the adapter "${adapter.info.vendor} ${adapter.info.device}": ${String(cause)}`,
      { cause, hint: "use another adapter, or the cpu backend" },
    );
  }
}
