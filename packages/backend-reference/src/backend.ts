import {
  type Backend,
  checkLoadRange,
  checkSupported,
  type LoadRequest,
  type SupportedKinds,
} from "@coppice/core";
import { attentionCapabilities, ReferenceRunner } from "./runner.js";
import { readWeights } from "./weights.js";

export function createReferenceBackend(): Backend {
  return {
    name: "reference",
    capabilities: { blocking: true, sharesWeights: false, attention: attentionCapabilities },
    async load(request: LoadRequest) {
      checkSupported(request.model, "reference", kinds);
      const range = checkLoadRange(request);
      return new ReferenceRunner(request.model, range, await readWeights(request, range));
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
