import {
  CoppiceError,
  createPlan,
  type DType,
  dtypeBytes,
  elementCount,
  type TensorRef,
  throwIfAborted,
} from "@coppice/core";
import { readSmallFile } from "../folder.js";
import { replaceJsonValues } from "../json-edit.js";
import { defaultLimits } from "../limits.js";
import type { LoadedCheckpoint } from "../load.js";
import { attentionNoteFiles } from "./attention-note.js";
import { checkComplete, companionFiles, textFile } from "./companion-files.js";
import type { ConfigChanges } from "./config-changes.js";
import { bytesContent, rangeContent } from "./content.js";
import {
  carriedProvenance,
  createProvenance,
  lineage,
  provenanceFileName,
  provenanceText,
} from "./provenance.js";
import { defaultShardBytes, layOutShards } from "./shards.js";
import type { ByteSink, CheckpointTarget, TargetTransaction } from "./target.js";
import { fillSink, type OutputFile, outputFile, type WriteOptions } from "./write-files.js";

/** A tensor of a rewritten checkpoint. */
export interface RewrittenTensor {
  readonly name: string;
  readonly dtype: DType;
  readonly shape: readonly number[];
  /** Tensor of the loaded checkpoint of which the bytes are copied; absent: they are given to `write`. */
  readonly source?: TensorRef;
}

/** Writes all bytes of a tensor that has no source, each once, in any order. */
export type WriteTensor = (name: string, bytes: Uint8Array) => Promise<void>;

export interface RewriteOptions extends WriteOptions {
  /** Most tensor bytes per file; default 5 GB, as Hugging Face libraries write. */
  readonly maxShardBytes?: number;
  /** Values of config.json that change or are added, as JSON texts by path. */
  readonly config?: ConfigChanges;
}

/** What was written. */
export interface RewriteSummary {
  readonly files: readonly { readonly name: string; readonly bytes: number }[];
  /** Bytes of all files. */
  readonly bytes: number;
  /** Bytes of all tensors, without headers. */
  readonly tensorBytes: number;
}

/**
 * Writes a checkpoint with other tensors than the loaded one: some copied byte by byte, the others computed by `produce`
 * in whatever order it likes, so that none but the tensor at hand is in memory. Small files are copied, config.json gets
 * the changes, `coppice.json` the loaded checkpoint among those that this one is derived from. The target is complete or absent.
 * @throws COPPICE_FORMAT_TRUNCATED, COPPICE_IO_EXISTS, COPPICE_IO_NO_SPACE, COPPICE_IO_READ, COPPICE_IO_WRITE,
 * COPPICE_ABORTED, and whatever `produce` throws
 */
export async function rewriteCheckpoint(
  loaded: LoadedCheckpoint,
  target: CheckpointTarget,
  tensors: readonly RewrittenTensor[],
  produce: (write: WriteTensor) => Promise<void>,
  options: RewriteOptions = {},
): Promise<RewriteSummary> {
  const { maxShardBytes = defaultShardBytes, config, signal } = options;
  checkComplete(loaded);
  const { shards, index } = layOutShards(tensors, maxShardBytes);
  const bytes = await readSmallFile(loaded.folder, "config.json", defaultLimits.configBytes, signal);
  const text = new TextDecoder().decode(bytes);
  const small = [
    ...(index ? [index] : []),
    textFile("config.json", config ? replaceJsonValues(text, config.replace, config.insert) : text),
    textFile(provenanceFileName, await rewrittenProvenance(loaded, signal)),
    ...attentionNoteFiles(loaded.attention, loaded.model),
    ...(await companionFiles(loaded, [provenanceFileName])),
  ];
  const tensorBytes = tensors.reduce((sum, tensor) => sum + bytesOf(tensor), 0);
  const files = [
    ...shards.map(({ name, header, order }) => ({
      name,
      bytes: order.reduce((sum, tensor) => sum + bytesOf(tensor), header.length),
    })),
    ...small.map(({ name, bytes }) => ({ name, bytes })),
  ];
  const total = files.reduce((sum, { bytes }) => sum + bytes, 0);
  throwIfAborted(signal, `writing ${target.label}`);
  const transaction = await target.begin(total);
  const output = new OpenOutput(transaction, loaded, signal);
  try {
    for (const shard of shards) await output.openShard(shard);
    await produce((name, bytes) => output.write(name, bytes));
    await output.finish(small);
    throwIfAborted(signal, `writing ${target.label}`);
    await transaction.commit();
  } catch (error) {
    await output.abandon();
    await transaction.rollback();
    throw error;
  }
  options.emitter?.notify("artifact", { kind: "checkpoint", path: target.label });
  return { files, bytes: total, tensorBytes };
}

/** What `coppice.json` said before, one checkpoint further on. */
async function rewrittenProvenance(
  loaded: LoadedCheckpoint,
  signal: AbortSignal | undefined,
): Promise<string> {
  const { model } = loaded;
  const before = await carriedProvenance(loaded, signal);
  return provenanceText(
    before
      ? { ...before, derivedFrom: lineage(model) }
      : createProvenance(model, createPlan(model), undefined),
  );
}

/** The files of a checkpoint while its tensors are computed. */
class OpenOutput {
  readonly #transaction: TargetTransaction;
  readonly #loaded: LoadedCheckpoint;
  readonly #signal: AbortSignal | undefined;
  readonly #sinks: ByteSink[] = [];
  /** Tensors that are not written yet. */
  readonly #missing = new Map<string, { sink: ByteSink; offset: number; bytes: number }>();

  constructor(transaction: TargetTransaction, loaded: LoadedCheckpoint, signal: AbortSignal | undefined) {
    this.#transaction = transaction;
    this.#loaded = loaded;
    this.#signal = signal;
  }

  /** Writes the header and what is copied; remembers where the rest goes. */
  async openShard(shard: {
    readonly name: string;
    readonly header: Uint8Array;
    readonly order: readonly RewrittenTensor[];
  }): Promise<void> {
    const { name, header, order } = shard;
    const size = order.reduce((sum, tensor) => sum + bytesOf(tensor), header.length);
    const sink = await this.#transaction.create(name, size);
    this.#sinks.push(sink);
    let at = 0;
    /** Neighbours that are written in one go, from `at` on. */
    let run = [bytesContent(header)];
    let end = header.length;
    const flush = async () => {
      if (run.length > 0) await fillSink(outputFile(name, run), sink, at, this.#signal);
      run = [];
      at = end;
    };
    for (const tensor of order) {
      const bytes = bytesOf(tensor);
      const { source } = tensor;
      if (source) {
        run.push(rangeContent(this.#loaded.sources, source.file, source.begin, source.end));
        end += bytes;
        continue;
      }
      await flush();
      this.#missing.set(tensor.name, { sink, offset: end, bytes });
      end += bytes;
      at = end;
    }
    await flush();
  }

  async write(name: string, bytes: Uint8Array): Promise<void> {
    throwIfAborted(this.#signal, `writing ${name}`);
    const place = this.#missing.get(name);
    if (place?.bytes !== bytes.length) {
      throw new CoppiceError(
        "COPPICE_INTERNAL",
        `${bytes.length} bytes were given for the tensor ${name}, expected ${place?.bytes ?? "none"}`,
      );
    }
    this.#missing.delete(name);
    await place.sink.write(place.offset, bytes);
  }

  /** Closes the files of tensors and writes the small ones. */
  async finish(small: readonly OutputFile[]): Promise<void> {
    const [name] = this.#missing.keys();
    if (name !== undefined) {
      throw new CoppiceError("COPPICE_INTERNAL", `the tensor ${name} was never written`);
    }
    for (const sink of this.#sinks.splice(0)) await sink.close();
    for (const file of small) {
      const sink = await this.#transaction.create(file.name, file.bytes);
      this.#sinks.push(sink);
      await fillSink(file, sink, 0, this.#signal);
      this.#sinks.pop();
      await sink.close();
    }
  }

  async abandon(): Promise<void> {
    for (const sink of this.#sinks.splice(0)) await sink.close().catch(() => {});
  }
}

function bytesOf({ dtype, shape }: RewrittenTensor): number {
  return elementCount(shape) * dtypeBytes[dtype];
}
