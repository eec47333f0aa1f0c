import { CoppiceError } from "./errors.js";
import type { ActivationSpec, DecoderLayer, MoeModel, NormSpec, RotaryScaling, RouterSpec } from "./model.js";

/** The kinds of parts that a backend runs, as descriptions of models name them. */
export interface SupportedKinds {
  readonly norm: readonly NormSpec["kind"][];
  readonly attention: readonly DecoderLayer["attention"]["kind"][];
  readonly rotaryScaling: readonly RotaryScaling["kind"][];
  readonly feedForward: readonly DecoderLayer["feedForward"]["kind"][];
  readonly routerOrder: readonly RouterSpec["order"][];
  readonly activation: readonly ActivationSpec["kind"][];
}

/**
 * Refuses models that are described for edits only, and those with a part of a kind that the backend has never heard
 * of: a description may come from a later core than the backend was written for.
 * @param backend its name, for the message
 * @throws COPPICE_BACKEND_UNSUPPORTED
 */
export function checkSupported(model: MoeModel, backend: string, kinds: SupportedKinds): void {
  const { editOnly, family } = model;
  if (editOnly !== undefined) {
    throw new CoppiceError(
      "COPPICE_BACKEND_UNSUPPORTED",
      `models of the family ${family} are not run, only edited: ${editOnly}`,
      { hint: "its experts can be inspected, pruned and merged", details: { family, editOnly } },
    );
  }
  const check = (where: string, what: string, found: string | undefined, supported: readonly string[]) => {
    if (found === undefined || supported.includes(found)) return;
    throw new CoppiceError(
      "COPPICE_BACKEND_UNSUPPORTED",
      `${where} has ${what} "${found}"; the ${backend} backend runs ${supported.map((kind) => `"${kind}"`).join(", ")}`,
      { details: { where, found, supported } },
    );
  };
  for (const { index, attention, attentionNorm, feedForward, feedForwardNorm } of model.layers) {
    const where = `layer ${index}`;
    for (const norm of [attentionNorm, feedForwardNorm]) check(where, "norm", norm.kind, kinds.norm);
    check(where, "attention", attention.kind, kinds.attention);
    if (attention.kind !== "other")
      check(where, "rotary scaling", attention.rotary?.scaling?.kind, kinds.rotaryScaling);
    check(where, "feed-forward", feedForward.kind, kinds.feedForward);
    if (feedForward.kind === "other") continue;
    const isMoe = feedForward.kind === "moe";
    if (isMoe) check(where, "router order", feedForward.router.order, kinds.routerOrder);
    const mlps = isMoe ? feedForward.experts : [feedForward.mlp];
    const shared = isMoe && feedForward.shared ? [feedForward.shared] : [];
    for (const mlp of [...mlps, ...shared]) check(where, "activation", mlp.activation.kind, kinds.activation);
  }
  check("the model", "final norm", model.finalNorm.kind, kinds.norm);
}
