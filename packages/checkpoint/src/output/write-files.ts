import { type RunEmitter, startProgress, throwIfAborted } from "@coppice/core";
import type { Content } from "./content.js";
import type { ByteSink, CheckpointTarget } from "./target.js";

/** A file to be written: its contents one after the other. */
export interface OutputFile {
  readonly name: string;
  readonly bytes: number;
  readonly contents: readonly Content[];
}

export interface WriteOptions {
  readonly signal?: AbortSignal;
  readonly emitter?: RunEmitter;
}

export function outputFile(name: string, contents: readonly Content[]): OutputFile {
  return { name, contents, bytes: contents.reduce((sum, { bytes }) => sum + bytes, 0) };
}

/** Large enough that the system's cost per call does not count, and a multiple of every element size. */
const bufferBytes = 8 << 20;

/**
 * Writes all files, or none. While one buffer is written, the next is filled.
 * @throws whatever reading, merging and the target throw, COPPICE_ABORTED; then nothing is left behind
 */
export async function writeFiles(
  files: readonly OutputFile[],
  target: CheckpointTarget,
  options: WriteOptions = {},
): Promise<void> {
  const { signal, emitter } = options;
  const total = files.reduce((sum, { bytes }) => sum + bytes, 0);
  throwIfAborted(signal, `writing ${target.label}`);
  const transaction = await target.begin(total);
  const tell = startProgress(emitter, "writing checkpoint", "bytes");
  let done = 0;
  const report = (bytes: number) => {
    done += bytes;
    tell(done, total);
  };
  let closing: Promise<void> = Promise.resolve();
  try {
    const size = Math.min(bufferBytes, Math.max(0, ...files.map(({ bytes }) => bytes)));
    const buffers = [new Uint8Array(size), new Uint8Array(size)] as const;
    for (const file of files) {
      const sink = await transaction.create(file.name, file.bytes);
      try {
        await pump(file, sink, buffers, signal, report);
      } catch (error) {
        await sink.close().catch(() => {});
        throw error;
      }
      // A file becomes durable while the next one is written.
      await closing;
      closing = sink.close();
      closing.catch(() => {});
    }
    await closing;
    throwIfAborted(signal, `writing ${target.label}`);
    await transaction.commit();
  } catch (error) {
    await closing.catch(() => {});
    await transaction.rollback();
    throw error;
  }
  emitter?.notify("artifact", { kind: "checkpoint", path: target.label });
}

/** Writes the contents of a file from `offset` of its sink on. */
export async function fillSink(
  file: OutputFile,
  sink: ByteSink,
  offset: number,
  signal: AbortSignal | undefined,
): Promise<void> {
  const size = Math.min(bufferBytes, file.bytes);
  const shifted: ByteSink = {
    write: (at, bytes) => sink.write(offset + at, bytes),
    close: () => sink.close(),
  };
  await pump(file, shifted, [new Uint8Array(size), new Uint8Array(size)], signal, () => {});
}

async function pump(
  file: OutputFile,
  sink: ByteSink,
  buffers: readonly [Uint8Array, Uint8Array],
  signal: AbortSignal | undefined,
  report: (bytes: number) => void,
): Promise<void> {
  let pending: Promise<void> = Promise.resolve();
  let turn: 0 | 1 = 0;
  const cursor = { content: 0, offset: 0 };
  try {
    for (let at = 0; at < file.bytes; at += buffers[0].length) {
      throwIfAborted(signal, `writing ${file.name}`);
      const part = buffers[turn].subarray(0, Math.min(buffers[0].length, file.bytes - at));
      turn = turn === 0 ? 1 : 0;
      await fill(file, cursor, part, signal);
      await pending;
      pending = sink.write(at, part).then(() => report(part.length));
      // The rejection is taken up by the next `await pending`, after the fill in between.
      pending.catch(() => {});
    }
  } finally {
    await pending;
  }
}

async function fill(
  file: OutputFile,
  cursor: { content: number; offset: number },
  into: Uint8Array,
  signal: AbortSignal | undefined,
): Promise<void> {
  for (let at = 0; at < into.length; ) {
    const content = file.contents[cursor.content] as Content;
    const size = Math.min(content.bytes - cursor.offset, into.length - at);
    if (size > 0) await content.fill(cursor.offset, into.subarray(at, at + size), signal);
    at += size;
    cursor.offset += size;
    if (cursor.offset === content.bytes) {
      cursor.content++;
      cursor.offset = 0;
    }
  }
}
