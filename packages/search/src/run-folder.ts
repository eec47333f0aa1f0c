import { mkdir, readdir } from "node:fs/promises";
import { join, resolve } from "node:path";
import { CoppiceError } from "@coppice/core";
import { readError, writeError, writeFileAtomic } from "@coppice/core/node";
import type { RunJournal } from "./journal.js";
import { type JournalFile, openJournalFile } from "./journal-file.js";
import type { RunIdentity } from "./run-identity.js";
import { takeLock } from "./run-lock.js";

const journalName = "journal.jsonl";
const lockName = "run.lock";

/** A folder that holds one run: `journal.jsonl`, and what the application writes beside it. */
export interface RunFolder extends AsyncDisposable {
  /** Absolute path. */
  readonly path: string;
  /** True when an earlier process began this run. */
  readonly resumed: boolean;
  readonly journal: RunJournal;
  /** Writes `name` in the folder, whole or not at all, and returns its path. */
  write(name: string, data: string | Uint8Array): Promise<string>;
  /** `write` of indented JSON, for `plan.json` and `result.json`. */
  writeJson(name: string, value: unknown): Promise<string>;
  /** Closes the journal and gives the lock back. */
  dispose(): Promise<void>;
}

export interface OpenRunFolderOptions {
  /** Refuse to resume: the folder must be new or empty. Default false. */
  readonly fresh?: boolean;
}

/**
 * Opens the run folder at `path` for this process alone: creates it when it is missing, resumes it when it holds
 * a run of the same identity.
 *
 * @throws COPPICE_RUN_LOCKED, COPPICE_RUN_IDENTITY, COPPICE_RUN_JOURNAL, COPPICE_IO_EXISTS when the folder holds
 * other files but no run (they could be overwritten), COPPICE_IO_READ, COPPICE_IO_WRITE, COPPICE_IO_NO_SPACE
 */
export async function openRunFolder(
  path: string,
  identity: RunIdentity,
  options: OpenRunFolderOptions = {},
): Promise<RunFolder> {
  const folder = resolve(path);
  try {
    await mkdir(folder, { recursive: true });
  } catch (error) {
    throw writeError(folder, error);
  }
  await checkContent(folder, options.fresh ?? false);
  const unlock = await takeLock(join(folder, lockName));
  try {
    const journal = await openJournalFile(join(folder, journalName), identity);
    return new OpenRunFolder(folder, journal, unlock);
  } catch (error) {
    await unlock();
    throw error;
  }
}

class OpenRunFolder implements RunFolder {
  readonly path: string;
  readonly #journal: JournalFile;
  readonly #unlock: () => Promise<void>;

  constructor(path: string, journal: JournalFile, unlock: () => Promise<void>) {
    this.path = path;
    this.#journal = journal;
    this.#unlock = unlock;
  }

  get resumed(): boolean {
    return this.#journal.resumed;
  }

  get journal(): RunJournal {
    return this.#journal;
  }

  async write(name: string, data: string | Uint8Array): Promise<string> {
    const path = join(this.path, name);
    await writeFileAtomic(path, data);
    return path;
  }

  writeJson(name: string, value: unknown): Promise<string> {
    return this.write(name, `${JSON.stringify(value, null, 2)}\n`);
  }

  async dispose(): Promise<void> {
    await this.#journal.dispose();
    await this.#unlock();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose();
  }
}

async function checkContent(folder: string, fresh: boolean): Promise<void> {
  let names: string[];
  try {
    names = await readdir(folder);
  } catch (error) {
    throw readError(folder, error);
  }
  const holdsRun = names.includes(journalName);
  if (fresh && holdsRun) {
    throw new CoppiceError("COPPICE_IO_EXISTS", `${folder} holds a run already`, {
      hint: "give a folder that does not exist yet",
      details: { path: folder },
    });
  }
  // A process that was killed before its journal began leaves only its lock.
  const other = names.filter((name) => !name.startsWith(lockName));
  if (holdsRun || other.length === 0) return;
  throw new CoppiceError(
    "COPPICE_IO_EXISTS",
    `${folder} is not a run folder: it has no ${journalName} but holds ${other.slice(0, 3).join(", ")}`,
    { hint: "give an empty folder or one that does not exist yet", details: { path: folder } },
  );
}
