import { CoppiceError, type Quantizer } from "@coppice/core";
import { calibrationSequences, loadTokenizer } from "@coppice/evaluate";
import type { CalibrationData } from "@coppice/quantizers";
import type { CliContext } from "../context.js";
import { backendHere } from "./backend-here.js";
import type { PoolOptions } from "./model-pool.js";
import type { OpenModel } from "./open-model.js";
import { readTask } from "./task-file.js";

export interface CalibrationOptions extends Omit<PoolOptions, "workers"> {
  readonly data?: string;
  readonly limit?: number;
  readonly chat?: boolean;
  /** Whether something else than the quantizer uses the data. */
  readonly measures: boolean;
}

/**
 * The data that a quantizer learns inputs from; undefined for one that needs none.
 * @throws COPPICE_USAGE when it is missing, or given for nothing
 */
export async function readCalibration(
  { checkpoint: { model, folder } }: Pick<OpenModel, "checkpoint">,
  { needs }: Quantizer,
  { data, limit, chat = false, measures, ...running }: CalibrationOptions,
  context: CliContext,
): Promise<CalibrationData | undefined> {
  if (!needs.inputs) {
    if (data === undefined || measures) return undefined;
    throw new CoppiceError("COPPICE_USAGE", "--data is given and the method works from the weights alone", {
      hint: "leave it out, or use --method gptq or awq",
    });
  }
  if (data === undefined) {
    throw new CoppiceError("COPPICE_USAGE", "the method needs --data: it works from what matrices read", {
      hint: "give a task file or text that is like what the model will read, some ten thousand tokens",
    });
  }
  const sequences = calibrationSequences(await readTask(data, context), {
    tokenizer: await loadTokenizer(folder),
    model,
    chat,
    ...(limit !== undefined && { limit }),
  });
  return { backend: await backendHere(running, context), sequences };
}
