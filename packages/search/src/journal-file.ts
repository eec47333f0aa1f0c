import { type FileHandle, open } from "node:fs/promises";
import { dirname } from "node:path";
import { CoppiceError } from "@coppice/core";
import { readHandleBounded, syncFolder, writeError } from "@coppice/core/node";
import { decodeLine, encodeLine } from "./checked-line.js";
import type { JournalRecord, RunJournal } from "./journal.js";
import { checkIdentity, type RunIdentity } from "./run-identity.js";

/** Largest journal that is read: some 100,000 evaluations of 500 samples, far beyond any run, yet within memory. */
export const maxJournalBytes = 2 ** 30;

const journalVersion = 1;

/** A journal in a file of checksummed JSON lines, `{"crc32":"<of the record's text>","record":{...}}`. */
export interface JournalFile extends RunJournal, AsyncDisposable {
  /** True when the file held records of an earlier process. */
  readonly resumed: boolean;
  dispose(): Promise<void>;
}

/**
 * Opens or creates the journal of the run `identity`. An incomplete or damaged last line, which a kill in the
 * middle of a write leaves, is dropped; damage before it is refused. The caller sees to it that no other process
 * writes the same file.
 *
 * @throws COPPICE_RUN_JOURNAL, COPPICE_RUN_IDENTITY, COPPICE_IO_READ, COPPICE_IO_WRITE, COPPICE_IO_NO_SPACE
 */
export async function openJournalFile(path: string, identity: RunIdentity): Promise<JournalFile> {
  let file: FileHandle;
  try {
    // "a+" creates the file when it is missing and never truncates one that is there.
    file = await open(path, "a+");
  } catch (error) {
    throw writeError(path, error);
  }
  try {
    const { records, bytes, size } = await readRecords(file, path);
    const header = records.shift();
    if (header) checkHeader(path, header, identity);
    if (bytes < size) await file.truncate(bytes);
    const journal = new Journal(path, file, bytes, records, header !== undefined);
    if (!header) {
      await journal.write([{ type: "run", version: journalVersion, identity }]);
      await syncFolder(dirname(path));
    }
    return journal;
  } catch (error) {
    await file.close();
    throw error;
  }
}

class Journal implements JournalFile {
  readonly records: JournalRecord[];
  readonly resumed: boolean;
  readonly #path: string;
  readonly #file: FileHandle;
  /** Bytes of whole records. */
  #bytes: number;
  #last: Promise<void> = Promise.resolve();
  #broken: unknown;
  #closed = false;

  constructor(path: string, file: FileHandle, bytes: number, records: JournalRecord[], resumed: boolean) {
    this.#path = path;
    this.#file = file;
    this.#bytes = bytes;
    this.records = records;
    this.resumed = resumed;
  }

  append(records: readonly JournalRecord[]): Promise<void> {
    const write = this.#last.then(async () => {
      if (records.length === 0) return;
      await this.write(records);
      this.records.push(...records);
    });
    this.#last = write.catch(() => {});
    return write;
  }

  async write(records: readonly JournalRecord[]): Promise<void> {
    if (this.#broken !== undefined) throw this.#broken;
    if (this.#closed) {
      throw new CoppiceError("COPPICE_IO_WRITE", `the journal ${this.#path} was closed before this write`);
    }
    const data = Buffer.from(records.map(encodeLine).join(""));
    try {
      await this.#file.appendFile(data);
      await this.#file.sync();
      this.#bytes += data.length;
    } catch (error) {
      // Part of the lines may be in the file; a record behind them would make that damage in the middle.
      this.#broken = writeError(this.#path, error);
      await this.#file.truncate(this.#bytes).catch(() => {});
      throw this.#broken;
    }
  }

  async dispose(): Promise<void> {
    await this.#last;
    if (this.#closed) return;
    this.#closed = true;
    await this.#file.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose();
  }
}

async function readRecords(
  file: FileHandle,
  path: string,
): Promise<{ records: JournalRecord[]; bytes: number; size: number }> {
  const found = await readHandleBounded(file, path, { limit: maxJournalBytes, code: "COPPICE_RUN_JOURNAL" });
  const data = Buffer.from(found.buffer, found.byteOffset, found.length);
  const records: JournalRecord[] = [];
  let begin = 0;
  while (begin < data.length) {
    const newline = data.indexOf(10, begin);
    const record = newline < 0 ? undefined : decodeLine(data.toString("utf8", begin, newline));
    if (!record) {
      const isLast = newline < 0 || newline === data.length - 1;
      if (isLast) break;
      throw damaged(path, `is damaged in line ${records.length + 1}`, records.length + 1);
    }
    records.push(record);
    begin = newline + 1;
  }
  return { records, bytes: begin, size: data.length };
}

function checkHeader(path: string, header: JournalRecord, identity: RunIdentity): void {
  const { type, version, identity: run } = header as Record<string, unknown>;
  if (type !== "run" || version !== journalVersion || !isObject(run)) {
    throw damaged(
      path,
      `begins with a record of type ${JSON.stringify(type)} and version ${JSON.stringify(version)}, ` +
        `expected "run" and ${journalVersion}`,
      1,
    );
  }
  // Through JSON, so that fields that are undefined compare as the absent fields they become.
  checkIdentity(path, run, JSON.parse(JSON.stringify(identity)) as RunIdentity);
}

function damaged(path: string, what: string, line: number): CoppiceError {
  return new CoppiceError("COPPICE_RUN_JOURNAL", `the journal ${path} ${what}`, {
    hint: "restore the file from a backup, or start again in a new run folder",
    details: { path, line },
  });
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
