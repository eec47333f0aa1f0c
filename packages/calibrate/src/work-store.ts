/** Files of a layer-streamed pass, by name: a folder, or whatever a program without a file system keeps them in. */
export interface WorkStore {
  /** What messages call it, such as its path. */
  readonly label: string;
  /** Names of all files, also of those that others put there. */
  list(): Promise<string[]>;
  /** @throws COPPICE_IO_READ, also when there is no such file */
  read(name: string): Promise<Uint8Array>;
  /**
   * Writes a file, which appears complete or not at all, in place of one of that name.
   * @throws COPPICE_IO_WRITE, COPPICE_IO_NO_SPACE
   */
  write(name: string, bytes: Uint8Array): Promise<void>;
  /** Does nothing when there is no such file. */
  remove(name: string): Promise<void>;
  /** Bytes that can still be written, or undefined where nobody can tell. */
  freeBytes(): Promise<number | undefined>;
}
