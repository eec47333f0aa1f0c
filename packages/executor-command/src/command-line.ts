import { CoppiceError } from "@coppice/core";

/** Where one batch is written and where its results are expected. */
export interface WorkFiles {
  readonly request: string;
  readonly result: string;
}

/**
 * Program and arguments for one batch: `{request}` and `{result}` in any argument stand for the two paths; when neither
 * occurs, both are appended in this order. No shell is involved.
 */
export function fillCommand(command: readonly string[], { request, result }: WorkFiles): string[] {
  const named = command.some((word) => /\{(request|result)\}/.test(word));
  const filled = command.map((word) =>
    word.replaceAll("{request}", () => request).replaceAll("{result}", () => result),
  );
  return named ? filled : [...filled, request, result];
}

/** @throws COPPICE_USAGE */
export function checkCommand(command: unknown): readonly string[] {
  const usable =
    Array.isArray(command) &&
    command.length > 0 &&
    command.every((word) => typeof word === "string" && !word.includes("\0")) &&
    command[0] !== "";
  if (usable) return command as string[];
  throw new CoppiceError(
    "COPPICE_USAGE",
    `the command is ${JSON.stringify(command)}, expected a list of a program and its arguments`,
  );
}
