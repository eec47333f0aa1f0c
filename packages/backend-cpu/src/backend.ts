import {
  type Backend,
  checkLoadRange,
  checkSupported,
  type LoadRequest,
  type SupportedKinds,
  throwIfAborted,
} from "@coppice/core";
import { attentionCapabilities } from "./capabilities.js";
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
    capabilities: { blocking: true, sharesWeights: false, attention: attentionCapabilities },
    async load(request: LoadRequest) {
      const { model, weights, signal } = request;
      throwIfAborted(signal, "loading a model");
      checkSupported(model, "cpu", kinds);
      const loaded = checkLoadRange(request);
      const runtime = await loadRuntime();
      const read = await readWeights(runtime, model, weights, loaded, signal);
      return new CpuRunner(runtime, model, loaded, read, settings);
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
