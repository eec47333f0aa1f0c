import { type Backend, CoppiceError, type LoadRequest, type MoeModel } from "@coppice/core";
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
      checkSupported(model);
      const runtime = await loadRuntime();
      return new CpuRunner(runtime, model, await readWeights(runtime, model, weights, signal), settings);
    },
  };
}

/** A description made by a later core may hold kinds that this code has never heard of. */
function checkSupported(model: MoeModel): void {
  for (const { index, attention, feedForward } of model.layers) {
    const mlps = feedForward.kind === "moe" ? feedForward.experts : [feedForward.mlp];
    check(index, "attention", attention.kind, "gqa");
    if (feedForward.kind === "moe") check(index, "router order", feedForward.router.order, "softmax-topk");
    else check(index, "feed-forward", feedForward.kind, "dense");
    for (const mlp of mlps) check(index, "activation", mlp.activation, "silu");
    checkMultiple(index, "head size", attention.headDim);
    checkMultiple(index, "number of rotating dimensions", attention.rotary.dimensions);
  }
}

function check(layer: number, what: string, found: string, supported: string): void {
  if (found === supported) return;
  throw new CoppiceError(
    "COPPICE_BACKEND_UNSUPPORTED",
    `layer ${layer} has ${what} "${found}"; the cpu backend runs "${supported}"`,
    { details: { layer, found, supported } },
  );
}

/** A limit of ONNX Runtime's GroupQueryAttention with rotary positions. */
function checkMultiple(layer: number, what: string, found: number): void {
  if (found % 16 === 0) return;
  throw new CoppiceError(
    "COPPICE_BACKEND_UNSUPPORTED",
    `layer ${layer} has a ${what} of ${found}; the cpu backend needs a multiple of 16`,
    { details: { layer, found }, hint: "use the reference backend" },
  );
}
