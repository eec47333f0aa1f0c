import { CoppiceError } from "@coppice/core";
import { encodePrompt, loadTokenizer } from "@coppice/evaluate";
import { checkSequence } from "../commands/logits.js";
import type { OpenModel } from "./open-model.js";

/** A prompt as text or as token ids. */
export interface PromptOptions {
  readonly prompt?: string;
  readonly ids?: readonly Int32Array[];
  readonly chat?: boolean;
}

/** Token ids of the prompt that the user gave. @throws COPPICE_USAGE, COPPICE_TOKENIZER, COPPICE_TASK_TOO_LONG */
export async function promptIds(
  { checkpoint: { model, folder } }: OpenModel,
  { prompt, ids: given, chat = false }: PromptOptions,
): Promise<Int32Array> {
  if ((prompt === undefined) === (given === undefined)) {
    throw new CoppiceError("COPPICE_USAGE", "give either a --prompt or --ids");
  }
  const [ids = new Int32Array(0)] =
    prompt === undefined
      ? (given ?? [])
      : [encodePrompt(prompt, { tokenizer: await loadTokenizer(folder), chat }).ids];
  if (ids.length === 0) throw new CoppiceError("COPPICE_USAGE", "the prompt has no tokens");
  checkSequence(ids, model);
  return ids;
}
