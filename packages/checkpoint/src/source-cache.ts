import type { ByteSource, CheckpointFolder } from "./folder.js";

/** Files kept open at once: enough for every reader here, far below what systems allow a process. */
const openFiles = 32;

interface Entry {
  readonly source: Promise<ByteSource>;
  users: number;
}

/** Opens files of a folder once and keeps the latest open, so that thousands of tensors do not open thousands. */
export class SourceCache {
  readonly #folder: CheckpointFolder;
  /** In the order of use, latest last. */
  readonly #entries = new Map<string, Entry>();

  constructor(folder: CheckpointFolder) {
    this.#folder = folder;
  }

  async use<T>(name: string, work: (source: ByteSource) => Promise<T>): Promise<T> {
    let entry = this.#entries.get(name);
    this.#entries.delete(name);
    entry ??= { source: this.#folder.open(name), users: 0 };
    this.#entries.set(name, entry);
    entry.users++;
    try {
      return await work(await entry.source);
    } catch (error) {
      // A file that could not be opened is tried again next time.
      entry.source.catch(() => this.#entries.delete(name));
      throw error;
    } finally {
      entry.users--;
      await this.#trim();
    }
  }

  async close(): Promise<void> {
    const entries = [...this.#entries.values()];
    this.#entries.clear();
    await Promise.all(entries.map(closeEntry));
  }

  async #trim(): Promise<void> {
    for (const [name, entry] of this.#entries) {
      if (this.#entries.size <= openFiles) return;
      if (entry.users > 0) continue;
      this.#entries.delete(name);
      await closeEntry(entry);
    }
  }
}

async function closeEntry(entry: Entry): Promise<void> {
  const source = await entry.source.catch(() => undefined);
  await source?.close();
}
