import { basename } from "node:path";
import { parseTask, type Task, taskLimits } from "@coppice/evaluate";
import type { CliContext } from "../context.js";
import { readTextFile } from "./text-file.js";

/** Reads a task file. @throws COPPICE_IO_READ, COPPICE_TASK_LINE, COPPICE_TASK_EMPTY */
export async function readTask(path: string, context: CliContext): Promise<Task> {
  // UTF-8 needs at most four bytes per character.
  const bytes = 4 * taskLimits.fileChars;
  const text = await readTextFile(context.path(path), bytes, "COPPICE_TASK_LINE", context.signal);
  return parseTask(text, basename(path));
}
