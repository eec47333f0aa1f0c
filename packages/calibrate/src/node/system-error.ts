import { CoppiceError, type ErrorCode } from "@coppice/core";

/** Turns an error of the operating system into one with a code; others pass. */
export function systemError(error: unknown, what: string, code: ErrorCode): unknown {
  const system = (error as NodeJS.ErrnoException | undefined)?.code;
  if (error instanceof CoppiceError || typeof system !== "string") return error;
  const full = system === "ENOSPC" || system === "EDQUOT";
  const message = `${what}: ${(error as Error).message}`;
  return new CoppiceError(full ? "COPPICE_IO_NO_SPACE" : code, message, {
    cause: error,
    details: { code: system },
  });
}
