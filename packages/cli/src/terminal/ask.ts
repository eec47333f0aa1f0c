import { isCancel, text } from "@clack/prompts";
import { CoppiceError } from "@coppice/core";
import type { CliContext } from "../context.js";

/** True when a person is there to answer: both ends are a terminal, and no program reads the output. */
export function isInteractive({ io, out }: CliContext): boolean {
  return Boolean(io.stdin.isTTY && io.stderr.isTTY && !io.env["CI"] && !out.json);
}

/** Asks for a line of text on the terminal. @throws COPPICE_ABORTED when the person cancels */
export async function askText(message: string, { io, signal }: CliContext): Promise<string> {
  const answer = await text({ message, input: io.stdin, output: io.stderr, signal });
  if (isCancel(answer)) throw new CoppiceError("COPPICE_ABORTED", "stopped while asking for input");
  return answer ?? "";
}
