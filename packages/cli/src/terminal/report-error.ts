import { CommanderError } from "@commander-js/extra-typings";
import { isCoppiceError } from "@coppice/core";
import type { CliContext } from "../context.js";
import { toJson } from "./output.js";
import { printable } from "./printable.js";

/** Tells the user what went wrong and returns the exit code. Under --json stdout gets one object with `error`. */
export function reportError(error: unknown, context: CliContext): number {
  const { out, io } = context;
  const report = describeError(error);
  if (out.json && !out.written) io.stdout.write(`${toJson({ error: report.data })}\n`);
  out.error(report.data, (colors) => {
    const lines = [`${colors.red("error")} ${printable(report.text)}`];
    if (report.hint) lines.push(`${colors.dim("hint")}  ${printable(report.hint)}`);
    if (out.debug) lines.push(...stacks(error));
    return lines.join("\n");
  });
  return report.exitCode;
}

interface ErrorReport {
  readonly text: string;
  readonly hint: string | undefined;
  readonly exitCode: number;
  readonly data: Readonly<Record<string, unknown>>;
}

function describeError(error: unknown): ErrorReport {
  if (isCoppiceError(error)) {
    const { code, message, hint, details, exitCode } = error;
    return { text: `${code}: ${message}`, hint, exitCode, data: { code, message, hint, details } };
  }
  if (error instanceof CommanderError) {
    // Without a command commander prints the help itself and says no more.
    const bare = error.code === "commander.help";
    const message = bare ? "a command is missing" : error.message.replace(/^error: /, "");
    return {
      text: `COPPICE_USAGE: ${message}`,
      hint: "add --help to the command to see its options",
      exitCode: 2,
      data: { code: "COPPICE_USAGE", message },
    };
  }
  const message = error instanceof Error ? error.message : String(error);
  return {
    text: `COPPICE_INTERNAL: ${message}`,
    hint: "this should not happen; please report it with the output of `coppice doctor`. --debug shows the stack",
    exitCode: 1,
    data: { code: "COPPICE_INTERNAL", message },
  };
}

function stacks(error: unknown): string[] {
  const lines: string[] = [];
  for (let at = error, depth = 0; at instanceof Error && depth < 5; at = at.cause, depth++) {
    lines.push(`${depth === 0 ? "" : "caused by "}${at.stack ?? at.message}`);
  }
  return lines;
}
