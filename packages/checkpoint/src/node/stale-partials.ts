import { createHash, randomBytes } from "node:crypto";
import { readlinkSync } from "node:fs";
import { hostname } from "node:os";
import { basename, dirname, join } from "node:path";
import type { FileSystem } from "./file-system.js";

/** Hidden name of a folder on its way to `target`, unique on all computers that share the disk. */
export function partialName(target: string): string {
  return `${prefix(target)}${process.pid}-${randomBytes(4).toString("hex")}`;
}

/**
 * Removes what processes left of `target` that were killed while they wrote it. Only those of this computer are judged,
 * and only by processes that see the same process numbers: others may still be writing. Never fails.
 */
export async function removeStalePartials(target: string, fs: FileSystem): Promise<void> {
  const parent = dirname(target);
  const start = prefix(target);
  const names = await fs.list(parent).catch(() => []);
  for (const name of names) {
    if (!name.startsWith(start)) continue;
    const process = /^(\d+)-[0-9a-f]{8}$/.exec(name.slice(start.length))?.[1];
    if (process === undefined || isAlive(Number(process))) continue;
    await fs.removeTree(join(parent, name)).catch(() => {});
  }
}

function prefix(target: string): string {
  return `.${basename(target)}.partial-${processSpace()}-`;
}

let space: string | undefined;

/** Stands for the set of process numbers that this process sees: those of its computer, or of its container. */
function processSpace(): string {
  if (space === undefined) {
    let namespace = "";
    try {
      namespace = readlinkSync("/proc/self/ns/pid");
    } catch {
      // Only Linux has them; elsewhere a computer has one set.
    }
    space = createHash("sha256").update(`${hostname()}\n${namespace}`).digest("hex").slice(0, 8);
  }
  return space;
}

function isAlive(id: number): boolean {
  try {
    process.kill(id, 0);
    return true;
  } catch (error) {
    // EPERM: it lives and belongs to somebody else.
    return (error as NodeJS.ErrnoException).code !== "ESRCH";
  }
}
