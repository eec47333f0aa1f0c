import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";

/**
 * Folder of coppice-mixtral-27m, a small trained Mixtral: 6 layers of 8 experts, top-2, bf16, 53.5 MB, in the
 * stock Hugging Face layout with its tokenizer. Absolute path.
 */
export const modelPath: string = fileURLToPath(new URL("../model/", import.meta.url)).replace(/[\\/]$/, "");

/** Tasks that the model was trained on; each has 300 samples per split. */
export const taskNames = ["arith", "extract", "g2p", "geo", "json", "recall", "sort", "translate"] as const;

export type TaskName = (typeof taskNames)[number];

/** `search` is for calibration and fitness, `dev` for holdout scores; the two share no sample. */
export type TaskSplit = "search" | "dev";

/**
 * Absolute path of a task file: JSON lines with `prompt` and `answer`.
 * @throws RangeError for a name or split that is not shipped
 */
export function taskPath(name: TaskName, split: TaskSplit): string {
  const path = fileURLToPath(new URL(`../tasks/${split}/${name}.jsonl`, import.meta.url));
  if (!(taskNames as readonly string[]).includes(name) || !existsSync(path)) {
    throw new RangeError(
      `no task "${name}" with the split "${split}"; tasks are ${taskNames.join(", ")}, splits are search, dev`,
    );
  }
  return path;
}
