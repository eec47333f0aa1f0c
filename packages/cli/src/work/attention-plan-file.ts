import { createHash } from "node:crypto";
import { type AttentionPlan, type MoeModel, parseAttentionPlan } from "@coppice/core";
import type { CliContext } from "../context.js";
import type { OpenModel } from "./open-model.js";
import { readJsonFile } from "./text-file.js";

/** A few numbers per head, and a report of some hundred kilobytes. */
const attentionPlanBytes = 20_000_000;

/**
 * Reads an attention plan and checks it against the model.
 * @throws COPPICE_IO_READ, COPPICE_ATTENTION_INVALID, COPPICE_ATTENTION_MODEL, COPPICE_ATTENTION_UNSUPPORTED
 */
export async function readAttentionPlan(
  path: string,
  model: MoeModel,
  context: CliContext,
): Promise<AttentionPlan> {
  return parseAttentionPlan(await readAttentionFile(path, context), model);
}

/**
 * The attention plan that a command works under: that of the file, none for "none", and by default the one that the checkpoint brings along.
 * @throws as `readAttentionPlan`
 */
export async function chooseAttentionPlan(
  { checkpoint }: OpenModel,
  given: string | undefined,
  context: CliContext,
): Promise<AttentionPlan | undefined> {
  if (given === "none") return undefined;
  return given === undefined ? checkpoint.attention : readAttentionPlan(given, checkpoint.model, context);
}

/** Equal for plans by which heads see the same; what its method says of a plan does not count. */
export function attentionHash({ blockSize, sinks, rules, layers }: AttentionPlan): string {
  const spans = rules.map(({ alpha, beta }) => [alpha, beta]);
  return createHash("sha256")
    .update(JSON.stringify([blockSize, sinks, spans, layers]))
    .digest("hex")
    .slice(0, 16);
}

/** The value in a file of an attention plan, unchecked. @throws COPPICE_IO_READ, COPPICE_ATTENTION_INVALID */
export function readAttentionFile(path: string, context: CliContext): Promise<unknown> {
  return readJsonFile(context.path(path), attentionPlanBytes, "COPPICE_ATTENTION_INVALID", context.signal);
}
