import { CoppiceError } from "@coppice/core";

/** Where a checkpoint is written. It appears there completely or not at all. */
export interface CheckpointTarget {
  /** How messages call it, such as its path. */
  readonly label: string;
  /**
   * Prepares for files of `bytes` bytes altogether.
   * @throws COPPICE_IO_EXISTS, COPPICE_IO_NO_SPACE, COPPICE_IO_WRITE
   */
  begin(bytes: number): Promise<TargetTransaction>;
}

/** Files on their way; nobody sees them before `commit`. */
export interface TargetTransaction {
  /** A new file of exactly `bytes` bytes; `/` in its name stands for folders inside of the target. */
  create(name: string, bytes: number): Promise<ByteSink>;
  /** Makes all files durable and visible at once. @throws COPPICE_IO_EXISTS, COPPICE_IO_WRITE */
  commit(): Promise<void>;
  /** Removes everything that was written. Called when anything failed, `commit` included; never throws. */
  rollback(): Promise<void>;
}

/** A file being written. */
export interface ByteSink {
  write(offset: number, bytes: Uint8Array): Promise<void>;
  /** Ends the file; its bytes are durable where the target can promise that. */
  close(): Promise<void>;
}

/** A target in memory; `files` holds the checkpoint once it is complete. */
export interface MemoryTarget extends CheckpointTarget {
  readonly files: ReadonlyMap<string, Uint8Array>;
}

export function memoryTarget(label = "memory"): MemoryTarget {
  const files = new Map<string, Uint8Array>();
  return {
    label,
    files,
    begin: async () => {
      if (files.size > 0) throw targetExists(label);
      const pending = new Map<string, Uint8Array>();
      return {
        create: async (name, bytes) => {
          const content = new Uint8Array(bytes);
          pending.set(name, content);
          return { write: async (offset, part) => content.set(part, offset), close: async () => {} };
        },
        commit: async () => {
          for (const [name, content] of pending) files.set(name, content);
        },
        rollback: async () => pending.clear(),
      };
    },
  };
}

export function targetExists(label: string): CoppiceError {
  return new CoppiceError("COPPICE_IO_EXISTS", `${label} exists already and is not overwritten`, {
    hint: "give another output folder, or remove this one",
    details: { path: label },
  });
}
