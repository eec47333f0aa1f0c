import {
  type Backend,
  CoppiceError,
  checkLoadRange,
  checkSupported,
  type LoadRequest,
  type SupportedKinds,
  throwIfAborted,
} from "@coppice/core";
import { attentionCapabilities } from "./attention-limits.js";
import { checkKernels } from "./check-kernels.js";
import { checkOperators } from "./check-operators.js";
import { type DeviceOptions, type DeviceSource, SharedDevice } from "./device.js";
import { loadWeights } from "./load-weights.js";
import { pace } from "./pace.js";
import { WebgpuRunner } from "./runner.js";

export interface WebgpuSettings extends DeviceOptions {
  /**
   * In what products are multiplied: `f16` rounds both sides of products of many tokens to float16 and sums in float32; it needs a
   * device with units for that (`Gpu.matrixUnits`).
   * @default "f32"
   */
  readonly precision?: "f32" | "f16";
}

/**
 * Runs models on own WebGPU kernels. Runners of one backend share a device, which is opened for the first and destroyed after the
 * last.
 */
export function createWebgpuBackend(source: DeviceSource, settings: WebgpuSettings = {}): Backend {
  const device = new SharedDevice(source, settings);
  return {
    name: "webgpu",
    capabilities: { blocking: false, sharesWeights: false, attention: attentionCapabilities, pace },
    async load(request: LoadRequest) {
      const { model, weights, signal } = request;
      throwIfAborted(signal, "loading a model");
      checkSupported(model, "webgpu", kinds);
      const range = checkLoadRange(request);
      const use = await device.use();
      try {
        const half = settings.precision === "f16";
        if (half && !use.gpu.matrixUnits) {
          throw new CoppiceError(
            "COPPICE_BACKEND_UNAVAILABLE",
            "the device has no units that multiply matrices of float16",
            {
              hint: 'use the precision "f32"',
            },
          );
        }
        const canReadCodes = weights.readQuantized !== undefined;
        const { gpu, operators } = use;
        const { wide } = operators;
        await checkKernels(gpu, model, range, { canReadCodes, wide });
        if (settings.engine === "ort") await checkOperators(gpu, model, range, canReadCodes, operators);
        const loaded = await loadWeights(gpu, request, range, wide);
        return new WebgpuRunner(model, range, use, loaded, { half, canReadCodes, wide });
      } catch (error) {
        await use.release();
        throw error;
      }
    },
  };
}

const kinds: SupportedKinds = {
  norm: ["rms", "layer"],
  attention: ["gqa", "mla"],
  rotaryScaling: ["linear", "dynamic", "yarn", "llama3", "longrope"],
  feedForward: ["moe", "dense"],
  routerOrder: ["softmax-topk", "sigmoid-topk", "topk-softmax", "topk-sigmoid", "sparsemixer"],
  activation: ["silu", "clamped-swiglu", "relu2"],
};
