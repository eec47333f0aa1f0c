import { type Backend, CoppiceError, type LoadRequest, type MoeModel } from "@coppice/core";
import { ReferenceRunner } from "./runner.js";
import { readWeights } from "./weights.js";

export function createReferenceBackend(): Backend {
  return {
    name: "reference",
    capabilities: { blocking: true, sharesWeights: false },
    async load({ model, weights, signal }: LoadRequest) {
      checkSupported(model);
      return new ReferenceRunner(model, await readWeights(model, weights, signal));
    },
  };
}

const orders = ["softmax-topk", "sigmoid-topk", "topk-softmax", "topk-sigmoid", "sparsemixer"];
const activations = ["silu", "clamped-swiglu", "relu2"];
const scalings = ["linear", "dynamic", "yarn", "llama3", "longrope"];

/** A description made by a later core may hold kinds that this code has never heard of. */
function checkSupported(model: MoeModel): void {
  const { editOnly } = model;
  if (editOnly !== undefined) {
    throw new CoppiceError(
      "COPPICE_BACKEND_UNSUPPORTED",
      `models of the family ${model.family} cannot run: ${editOnly}`,
      {
        hint: "its experts can be inspected, pruned and merged, but nothing that needs its outputs works",
        details: { family: model.family, editOnly },
      },
    );
  }
  for (const { index, attention, attentionNorm, feedForward, feedForwardNorm } of model.layers) {
    const supported = (what: string, found: string, known: readonly string[]) =>
      check(`layer ${index}`, what, found, known);
    supported("attention", attention.kind, ["gqa", "mla"]);
    if (attention.kind === "other") continue;
    const scaling = attention.rotary?.scaling;
    if (scaling) supported("rotary scaling", scaling.kind, scalings);
    for (const norm of [attentionNorm, feedForwardNorm]) supported("norm", norm.kind, ["rms", "layer"]);
    supported("feed-forward", feedForward.kind, ["moe", "dense"]);
    if (feedForward.kind === "other") continue;
    if (feedForward.kind === "moe") supported("router order", feedForward.router.order, orders);
    const mlps = feedForward.kind === "moe" ? feedForward.experts : [feedForward.mlp];
    for (const mlp of mlps) supported("activation", mlp.activation.kind, activations);
    if (feedForward.kind === "moe" && feedForward.shared)
      supported("activation", feedForward.shared.activation.kind, activations);
  }
}

function check(where: string, what: string, found: string, known: readonly string[]): void {
  if (known.includes(found)) return;
  throw new CoppiceError(
    "COPPICE_BACKEND_UNSUPPORTED",
    `${where} has ${what} "${found}"; the reference backend runs ${known.join(", ")}`,
    { details: { where, found, supported: known } },
  );
}
