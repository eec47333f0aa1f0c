import { CoppiceError, isCoppiceError, spanDensity } from "@coppice/core";
import { type AttentionSource, openAttention } from "@coppice/executor-local";
import type { CliContext } from "../context.js";
import { findPlugin } from "../plugins/find-plugin.js";
import { readAttentionPlan } from "./attention-plan-file.js";
import type { OpenModel } from "./open-model.js";

export interface AttentionOptions {
  /** Plan file, name of a plugin, or "none". */
  readonly attention?: string;
  readonly attentionSet?: Readonly<Record<string, unknown>>;
}

/** What attention is limited to, and in words. */
export interface ChosenAttention {
  readonly source: AttentionSource;
  /** Name of the plan's file, or of the plugin with its options. */
  readonly name: string;
}

/**
 * What the user wants attention to be limited to: nothing said, what the checkpoint's own plan says.
 * @throws COPPICE_USAGE, and the errors of reading plans and of creating plugins
 */
export async function chooseAttention(
  { checkpoint }: OpenModel,
  { attention: given, attentionSet }: AttentionOptions,
  context: CliContext,
): Promise<ChosenAttention | undefined> {
  const isPlugin = given !== undefined && given !== "none" && !isFile(given);
  if (attentionSet && !isPlugin) {
    throw new CoppiceError("COPPICE_USAGE", "--attention-set is for an attention plugin, and none is named", {
      hint: "name one: --attention flex-prefill --attention-set gamma=0.95",
    });
  }
  if (given === "none") return undefined;
  if (given === undefined) {
    const plan = checkpoint.attention;
    return plan && { source: { plan }, name: "the checkpoint's own plan" };
  }
  if (!isPlugin) {
    return { source: { plan: await readAttentionPlan(given, checkpoint.model, context) }, name: given };
  }
  const { module, export: exported, name } = pluginNamed(given, context);
  const options = attentionSet ?? {};
  const source = { masker: { module, name, options, ...(exported !== undefined && { export: exported }) } };
  // Wrong options are refused before any worker starts.
  await openAttention(source);
  const settings = Object.entries(options).map(([key, value]) => `${key}=${JSON.stringify(value)}`);
  return { source, name: [name, ...settings].join(" ") };
}

/** Plans stand in files, whose names say so; names of plugins have neither dots nor slashes but in packages. */
function isFile(given: string): boolean {
  return /\.json$|^[./~]|\\/i.test(given);
}

function pluginNamed(name: string, context: CliContext) {
  try {
    return findPlugin("attention", name, context.io.cwd);
  } catch (error) {
    if (!isCoppiceError(error, "COPPICE_PLUGIN_NOT_FOUND")) throw error;
    throw new CoppiceError(error.code, error.message, {
      hint: `for a plan give its file, such as ./${name}.json; ${error.hint ?? ""}`,
      details: error.details,
    });
  }
}

/** One line about it, with the density of a plan at these lengths. */
export function attentionText({ source, name }: ChosenAttention, lengths: readonly number[]): string {
  const { plan } = source;
  if (!plan) return name;
  const densities = lengths.map((length) => `${spanDensity(plan, length).toFixed(2)} at ${length} tokens`);
  return [name, ...(densities.length > 0 ? [`density ${densities.join(", ")}`] : [])].join(", ");
}
