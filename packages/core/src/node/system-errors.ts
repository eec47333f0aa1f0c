import { CoppiceError, isCoppiceError } from "../errors.js";

/**
 * The error of Coppice for a call of the operating system that failed while `path` was written: COPPICE_IO_NO_SPACE or
 * COPPICE_IO_WRITE. The system's own message has the call. What is no error of the system passes through.
 */
export function writeError(path: string, cause: unknown): unknown {
  const system = systemCode(cause);
  if (system === undefined) return cause;
  const full = system === "ENOSPC" || system === "EDQUOT";
  return new CoppiceError(
    full ? "COPPICE_IO_NO_SPACE" : "COPPICE_IO_WRITE",
    full ? `no space is left to write ${path}` : `cannot write ${path}: ${(cause as Error).message}`,
    { cause, ...hinted(system), details: { path, system } },
  );
}

/** As `writeError`, for what was read: COPPICE_IO_READ. */
export function readError(path: string, cause: unknown): unknown {
  const system = systemCode(cause);
  if (system === undefined) return cause;
  return new CoppiceError("COPPICE_IO_READ", `cannot read ${path}: ${(cause as Error).message}`, {
    cause,
    ...hinted(system),
    details: { path, system },
  });
}

/** What the system calls an error, such as ENOENT; undefined for others, those of Coppice among them. */
function systemCode(cause: unknown): string | undefined {
  const code = (cause as NodeJS.ErrnoException | undefined)?.code;
  return typeof code === "string" && !isCoppiceError(cause) ? code : undefined;
}

/** What to do about errors of the system that have one likely reason. */
const hints: Readonly<Record<string, string>> = {
  EACCES: "check who may use that path",
  EEXIST: "a file is in the way: give another path",
  EISDIR: "this is a folder: give the path of a file",
  EMFILE: "too many files are open: raise the limit, such as with ulimit -n",
  ENOSPC: "make room there, or give a path on another disk",
  ENOTDIR: "a file is in the way: give a path whose folders are folders",
  EPERM: "check who may use that path",
  EROFS: "the disk is read-only: give a path on another one",
};

function hinted(system: string): { hint?: string } {
  const hint = hints[system];
  return hint === undefined ? {} : { hint };
}
