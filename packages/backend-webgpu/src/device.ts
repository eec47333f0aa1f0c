import { CoppiceError } from "@coppice/core";
import { Gpu, type GpuOptions } from "@coppice/kernels-webgpu";
import type { OnnxRuntime } from "./onnx-runtime.js";
import { type Operators, ownOperators } from "./operators.js";

/** Where devices come from: `navigator.gpu` of a browser, or what npm `webgpu` makes in Node. */
export interface DeviceSource {
  /** What it is, for messages: "navigator.gpu". */
  readonly name: string;
  /** @returns null where there is no adapter */
  requestAdapter(): Promise<GPUAdapter | null>;
  /** Extensions of WGSL that it compiles; absent: none is used. */
  readonly wgslLanguageFeatures?: Pick<ReadonlySet<string>, "has"> | undefined;
  /**
   * `onnxruntime-web/webgpu`, for the engine `ort`, made ready for a device of this source.
   * @throws COPPICE_BACKEND_UNAVAILABLE when it is not installed
   */
  readonly onnxRuntime?: (device: GPUDevice) => Promise<OnnxRuntime>;
}

/** What computes: our kernels alone, or operators of ONNX Runtime where it has them right. */
export type Engine = "own" | "ort";

export interface DeviceOptions extends GpuOptions {
  /** @default "own" */
  readonly engine?: Engine;
}

/** A use of a device that several runners share. */
export interface DeviceUse {
  readonly gpu: Gpu;
  readonly operators: Operators;
  /** Ends the use; the last one destroys the device. May be called again. */
  release(): Promise<void>;
}

interface Opened {
  readonly gpu: Gpu;
  readonly operators: Operators;
}

interface Shared extends Opened {
  uses: number;
}

/** The device of a source, opened at its first use and destroyed after its last. */
export class SharedDevice {
  readonly #source: DeviceSource;
  readonly #options: DeviceOptions;
  #opening: Promise<Shared> | undefined;

  constructor(source: DeviceSource, options: DeviceOptions = {}) {
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
      operators: shared.operators,
      release: async () => {
        if (ended) return;
        ended = true;
        if (--shared.uses > 0) return;
        if (this.#current === shared) this.#opening = undefined;
        await shared.operators.dispose();
        shared.gpu.dispose();
        shared.gpu.device.destroy();
      },
    };
  }

  #current: Shared | undefined;

  async #open(): Promise<Shared> {
    this.#opening ??= openDevice(this.#source, this.#options).then((opened) => {
      this.#current = { ...opened, uses: 0 };
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

async function openDevice(source: DeviceSource, options: DeviceOptions): Promise<Opened> {
  const { engine = "own", ...gpuOptions } = options;
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
  if (engine === "ort" && subgroupsFit(adapter.info)) wanted.push("subgroups" as GPUFeatureName);
  let gpu: Gpu;
  try {
    const device = await adapter.requestDevice({
      requiredFeatures: wanted.filter((feature) => adapter.features.has(feature)),
      requiredLimits: Object.fromEntries(limits.map((limit) => [limit, adapter.limits[limit]])),
    });
    gpu = new Gpu(device, {
      ...gpuOptions,
      adapterInfo: adapter.info,
      packsBytes: source.wgslLanguageFeatures?.has("packed_4x8_integer_dot_product") ?? false,
    });
  } catch (cause) {
    throw new CoppiceError(
      "COPPICE_BACKEND_UNAVAILABLE",
      `${source.name} opened no device on the adapter "${adapter.info.vendor} ${adapter.info.device}": ${String(cause)}`,
      { cause, hint: "use another adapter, or the cpu backend" },
    );
  }
  if (engine === "own") return { gpu, operators: ownOperators(gpu) };
  try {
    return { gpu, operators: await openOrtOperators(gpu, source) };
  } catch (error) {
    gpu.dispose();
    gpu.device.destroy();
    throw error;
  }
}

async function openOrtOperators(gpu: Gpu, { name, onnxRuntime }: DeviceSource): Promise<Operators> {
  if (!onnxRuntime) {
    throw new CoppiceError(
      "COPPICE_BACKEND_UNAVAILABLE",
      `${name} was given no ONNX Runtime for the engine "ort"`,
      {
        hint: 'npm install onnxruntime-web, and give the source of devices onnxRuntime: () => import("onnxruntime-web/webgpu")',
      },
    );
  }
  const { OrtOperators } = await import("./ort-operators.js");
  return new OrtOperators(gpu, await onnxRuntime(gpu.device));
}

/** Attention of ONNX Runtime 1.30 counts keys twice on subgroups of fewer threads; without subgroups it is right. */
const leastSubgroup = 8;

/** What WebGPU says of an adapter beside the types of the standard. */
function subgroupsFit({ subgroupMinSize = 0 }: { readonly subgroupMinSize?: number }): boolean {
  return subgroupMinSize >= leastSubgroup;
}
