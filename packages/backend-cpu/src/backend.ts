import { type Backend, CoppiceError, type LoadRequest, type MoeModel, throwIfAborted } from "@coppice/core";
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
