import { type AttentionPlan, type MoeModel, parseAttentionPlan } from "@coppice/core";
import type { CliContext } from "../context.js";
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

/** The value in a file of an attention plan, unchecked. @throws COPPICE_IO_READ, COPPICE_ATTENTION_INVALID */
export function readAttentionFile(path: string, context: CliContext): Promise<unknown> {
  return readJsonFile(context.path(path), attentionPlanBytes, "COPPICE_ATTENTION_INVALID", context.signal);
}
