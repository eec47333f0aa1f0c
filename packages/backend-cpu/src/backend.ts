import {
  type Backend,
  checkSupported,
  type LoadRequest,
  type SupportedKinds,
  throwIfAborted,
} from "@coppice/core";
import { CpuRunner } from "./runner.js";
import { loadRuntime } from "./sessions.js";
import { readWeights } from "./weights.js";

export interface CpuSettings {
  readonly threads: number;
  readonly mergeCacheBytes: number;
}

export function createCpuBackend(settings: CpuSettings): Backend {
  return {
    name: "cpu",
    capabilities: { blocking: true, sharesWeights: false },
    async load({ model, weights, signal }: LoadRequest) {
      throwIfAborted(signal, "loading a model");
      checkSupported(model, "cpu", kinds);
      const runtime = await loadRuntime();
      return new CpuRunner(runtime, model, await readWeights(runtime, model, weights, signal), settings);
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
