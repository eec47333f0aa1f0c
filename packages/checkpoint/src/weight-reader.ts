import {
  CoppiceError,
  dtypeBytes,
  elementCount,
  type TensorRef,
  throwIfAborted,
  type WeightReader,
} from "@coppice/core";
import { decodeValues, firstNonFinite } from "./decode.js";
import type { ByteSource } from "./folder.js";
import type { SourceCache } from "./source-cache.js";

/** Bytes decoded at a time: large reads, yet two of them stay in a processor's cache. */
const chunkBytes = 1 << 20;
/** Largest single read of values that need no decoding, so that an abort is noticed soon. */
const directBytes = 64 << 20;

/** Reads tensors of the files that `sources` opens. Reads may overlap. */
export function createWeightReader(sources: SourceCache): WeightReader {
  return {
    read: async (ref, options = {}) => {
      const { signal } = options;
      throwIfAborted(signal, `reading ${ref.name}`);
      const count = elementCount(ref.shape);
      const out = options.into ?? new Float32Array(count);
      if (out.length !== count || ref.end - ref.begin !== count * dtypeBytes[ref.dtype]) {
        throw new CoppiceError(
          "COPPICE_INTERNAL",
          `${ref.name} has ${count} values in ${ref.end - ref.begin} bytes; the array to fill has ${out.length}`,
        );
      }
      await sources.use(ref.file, (source) =>
        ref.dtype === "F32" ? readDirectly(source, ref, out, signal) : readDecoded(source, ref, out, signal),
      );
      return out;
    },
  };
}

async function readDirectly(
  source: ByteSource,
  ref: TensorRef,
  out: Float32Array,
  signal: AbortSignal | undefined,
): Promise<void> {
  const bytes = new Uint8Array(out.buffer, out.byteOffset, out.byteLength);
  for (let at = 0; at < bytes.length; at += directBytes) {
    const part = bytes.subarray(at, Math.min(at + directBytes, bytes.length));
    await source.read(ref.begin + at, part, signal ? { signal } : {});
  }
  const bad = firstNonFinite(out);
  if (bad >= 0) throw badValue(ref, bad, out[bad] as number);
}

/** Reads the next chunk while the present one is decoded. */
async function readDecoded(
  source: ByteSource,
  ref: TensorRef,
  out: Float32Array,
  signal: AbortSignal | undefined,
): Promise<void> {
  const total = ref.end - ref.begin;
  const width = dtypeBytes[ref.dtype];
  const size = Math.min(chunkBytes, total);
  const buffers = [new Uint8Array(size), new Uint8Array(total > size ? size : 0)] as const;
  const readChunk = async (at: number, buffer: Uint8Array) => {
    const part = buffer.subarray(0, Math.min(size, total - at));
    await source.read(ref.begin + at, part, signal ? { signal } : {});
    return part;
  };
  let turn = 0;
  let pending: Promise<Uint8Array> | undefined = total > 0 ? readChunk(0, buffers[0]) : undefined;
  for (let at = 0; pending; at += size) {
    const part: Uint8Array = await pending;
    turn = 1 - turn;
    pending = at + size < total ? readChunk(at + size, buffers[turn as 0 | 1]) : undefined;
    const from = at / width;
    const bad = decodeValues(ref.dtype, part, out.subarray(from, from + part.length / width));
    if (bad >= 0) {
      await pending?.catch(() => {});
      throw badValue(ref, from + bad, out[from + bad] as number);
    }
  }
}

/** The error for the value at a flat position that is not finite, or an integer that float32 cannot hold. */
export function badValue(ref: TensorRef, position: number, value: number): CoppiceError {
  const index = unravel(position, ref.shape);
  if (Number.isFinite(value)) {
    return new CoppiceError(
      "COPPICE_FORMAT_DTYPE",
      `tensor ${ref.name} holds an ${ref.dtype} value near ${value} at [${index.join(", ")}] that float32 cannot hold`,
      { details: { file: ref.file, tensor: ref.name, index } },
    );
  }
  return new CoppiceError(
    "COPPICE_FORMAT_NAN",
    `tensor ${ref.name} in ${ref.file} holds ${value} at [${index.join(", ")}], expected finite values`,
    {
      hint: "the checkpoint is damaged or its training diverged",
      details: { file: ref.file, tensor: ref.name, index, value: String(value) },
    },
  );
}

function unravel(position: number, shape: readonly number[]): number[] {
  const index: number[] = [];
  let rest = position;
  for (const size of [...shape].reverse()) {
    index.unshift(rest % size);
    rest = Math.floor(rest / size);
  }
  return index;
}
