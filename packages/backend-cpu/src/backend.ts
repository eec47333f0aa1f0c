import {
  type ActivationSpec,
  type Backend,
  CoppiceError,
  type LoadRequest,
  type MoeModel,
  type NormSpec,
  type RotaryScaling,
  type RouterSpec,
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
      checkSupported(model);
      const runtime = await loadRuntime();
      return new CpuRunner(runtime, model, await readWeights(runtime, model, weights, signal), settings);
    },
  };
}

/**
 * Models that are described for edits only are refused, and whatever this code has never heard of: a description may
 * come from a later core.
 */
function checkSupported(model: MoeModel): void {
  if (model.editOnly !== undefined) {
    throw new CoppiceError(
      "COPPICE_BACKEND_UNSUPPORTED",
      `models of the family ${model.family} are not run, only edited: ${model.editOnly}`,
      { hint: "its experts can be inspected, pruned and merged", details: { family: model.family } },
    );
  }
  check("the model", "final norm", model.finalNorm.kind, norms);
  for (const { index, attention, attentionNorm, feedForward, feedForwardNorm } of model.layers) {
    const where = `layer ${index}`;
    for (const norm of [attentionNorm, feedForwardNorm]) check(where, "norm", norm.kind, norms);
    check(where, "attention", attention.kind, ["gqa", "mla"]);
    if (attention.kind !== "other") check(where, "rotary scaling", attention.rotary?.scaling?.kind, scalings);
    check(where, "feed-forward", feedForward.kind, ["moe", "dense"]);
    if (feedForward.kind === "other") continue;
    if (feedForward.kind === "moe") check(where, "router order", feedForward.router.order, orders);
    const mlps = feedForward.kind === "moe" ? feedForward.experts : [feedForward.mlp];
    const shared = feedForward.kind === "moe" && feedForward.shared ? [feedForward.shared] : [];
    for (const mlp of [...mlps, ...shared]) check(where, "activation", mlp.activation.kind, activations);
  }
}

const norms: readonly NormSpec["kind"][] = ["rms", "layer"];
const scalings: readonly RotaryScaling["kind"][] = ["linear", "dynamic", "yarn", "llama3", "longrope"];
const activations: readonly ActivationSpec["kind"][] = ["silu", "clamped-swiglu", "relu2"];
const orders: readonly RouterSpec["order"][] = [
  "softmax-topk",
  "sigmoid-topk",
  "topk-softmax",
  "topk-sigmoid",
  "sparsemixer",
];

function check(where: string, what: string, found: string | undefined, supported: readonly string[]): void {
  if (found === undefined || supported.includes(found)) return;
  throw new CoppiceError(
    "COPPICE_BACKEND_UNSUPPORTED",
    `${where} has ${what} "${found}"; the cpu backend runs ${supported.map((kind) => `"${kind}"`).join(", ")}`,
    { details: { where, found, supported } },
  );
}
