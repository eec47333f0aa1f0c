import { randomBytes } from "node:crypto";
import { constants, copyFile, link, readFile, rm, stat, writeFile } from "node:fs/promises";
import { hostname } from "node:os";
import { CoppiceError } from "@coppice/core";
import { readError, writeError } from "@coppice/core/node";

/** Who holds a lock. */
interface Holder {
  readonly pid: number;
  readonly host: string;
  /** Start of the process in clock ticks since boot, where the system tells; a reused pid differs in it. */
  readonly started?: string;
}

/** How long to wait for another process that takes over a dead one's lock, which takes it milliseconds. */
const patience = { attempts: 100, milliseconds: 20 };
/** Age at which a take-over counts as abandoned by a process that died in it. */
const abandonedAfter = 10_000;

/**
 * Takes the lock file `path` and returns the function that gives it back. A lock whose holder runs no longer on
 * this machine is taken over.
 * @throws COPPICE_RUN_LOCKED with the holder's process id
 */
export async function takeLock(path: string): Promise<() => Promise<void>> {
  const me: Holder = { pid: process.pid, host: hostname(), ...(await startOf(process.pid)) };
  const mine = `${path}.${process.pid}.${randomBytes(4).toString("hex")}`;
  try {
    await writeFile(mine, JSON.stringify(me), { flag: "wx" });
  } catch (error) {
    throw writeError(mine, error);
  }
  try {
    for (let attempt = 0; attempt < patience.attempts; attempt++) {
      // A link appears with its content, so nobody can ever read a lock that is half written.
      if (await tryLink(mine, path)) return () => rm(path, { force: true });
      const text = await read(path);
      if (text === undefined) continue;
      const holder = parseHolder(text);
      if (holder && (await mayBeAlive(holder))) throw locked(path, holder);
      const removed = await removeDead(path, text, mine);
      if (!removed) await new Promise((resolve) => setTimeout(resolve, patience.milliseconds));
    }
    throw locked(path, undefined);
  } finally {
    await rm(mine, { force: true });
  }
}

/**
 * Removes a dead holder's lock. Only one process at a time may do so, the one that holds a second lock; otherwise one
 * could remove the new lock of another that was faster. False when somebody else is at it.
 */
async function removeDead(path: string, dead: string, mine: string): Promise<boolean> {
  const turn = `${path}.takeover`;
  if (!(await tryLink(mine, turn))) {
    const age = await ageOf(turn);
    if (age !== undefined && age > abandonedAfter) await rm(turn, { force: true });
    return false;
  }
  try {
    if ((await read(path)) === dead) await rm(path, { force: true });
    return true;
  } finally {
    await rm(turn, { force: true });
  }
}

async function ageOf(path: string): Promise<number | undefined> {
  try {
    return Date.now() - (await stat(path)).mtimeMs;
  } catch {
    return undefined;
  }
}

async function tryLink(from: string, to: string): Promise<boolean> {
  try {
    await link(from, to);
    return true;
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code ?? "";
    if (code === "EEXIST") return false;
    // Some file systems have no hard links.
    if (["EPERM", "ENOTSUP", "EOPNOTSUPP", "ENOSYS"].includes(code)) return tryCopy(from, to);
    throw writeError(to, error);
  }
}

async function tryCopy(from: string, to: string): Promise<boolean> {
  try {
    await copyFile(from, to, constants.COPYFILE_EXCL);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EEXIST") return false;
    throw writeError(to, error);
  }
}

async function read(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, "utf8");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw readError(path, error);
  }
}

function parseHolder(text: string): Holder | undefined {
  try {
    const holder = JSON.parse(text) as Holder;
    return Number.isSafeInteger(holder.pid) && holder.pid > 0 && typeof holder.host === "string"
      ? holder
      : undefined;
  } catch {
    return undefined;
  }
}

async function mayBeAlive(holder: Holder): Promise<boolean> {
  // Processes of another machine cannot be seen from here.
  if (holder.host !== hostname()) return true;
  try {
    process.kill(holder.pid, 0);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ESRCH") return false;
  }
  const { started } = await startOf(holder.pid);
  return started === undefined || holder.started === undefined || started === holder.started;
}

/** Field 22 of /proc/<pid>/stat; nothing where there is no such file. */
async function startOf(pid: number): Promise<{ started?: string }> {
  try {
    const stat = await readFile(`/proc/${pid}/stat`, "utf8");
    // The second field, the program's name, may hold spaces and brackets; the fields behind it do not.
    const started = stat.slice(stat.lastIndexOf(")") + 2).split(" ")[19];
    return started === undefined ? {} : { started };
  } catch {
    return {};
  }
}

function locked(path: string, holder: Holder | undefined): CoppiceError {
  const who = holder ? `process ${holder.pid} on ${holder.host}` : "another process";
  return new CoppiceError("COPPICE_RUN_LOCKED", `${who} is working in this run folder (${path})`, {
    hint: `wait for it or stop it; if it is certainly gone, remove ${path}`,
    details: { path, ...(holder && { pid: holder.pid, host: holder.host }) },
    retryable: true,
  });
}
