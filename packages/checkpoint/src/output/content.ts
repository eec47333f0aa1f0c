import { CoppiceError, dtypeBytes, elementCount, mergeRows, type TensorRef } from "@coppice/core";
import { decodeValues, encodeRounded } from "../decode.js";
import type { SourceCache } from "../source-cache.js";
import { badValue } from "../weight-reader.js";

/** Bytes that are made or read when they are about to be written, in ascending order. */
export interface Content {
  readonly bytes: number;
  /**
   * Fills `into` with the bytes from `offset` on. Offset, length and address of `into` are multiples of the element
   * size, or reach the end.
   */
  fill(offset: number, into: Uint8Array, signal: AbortSignal | undefined): Promise<void>;
}

export function bytesContent(bytes: Uint8Array): Content {
  return {
    bytes: bytes.length,
    fill: async (offset, into) => into.set(bytes.subarray(offset, offset + into.length)),
  };
}

/** Bytes `begin` to `end` of a file, as they are. */
export function rangeContent(sources: SourceCache, file: string, begin: number, end: number): Content {
  return {
    bytes: end - begin,
    fill: (offset, into, signal) =>
      sources.use(file, (source) => source.read(begin + offset, into, signal ? { signal } : {})),
  };
}

/** One pattern of bytes again and again; the length of every request is a multiple of it. */
export function repeatedContent(pattern: Uint8Array, bytes: number): Content {
  const isZero = pattern.every((byte) => byte === 0);
  return {
    bytes,
    fill: async (_offset, into) => {
      if (isZero) into.fill(0);
      else for (let at = 0; at < into.length; at += pattern.length) into.set(pattern, at);
    },
  };
}

/** Bytes that are read from a file at once to pick some of them. */
const gatherBytes = 8 << 20;

/**
 * Columns of a matrix in a file, in any order.
 * @param width bytes of an element
 * @param columns per output column the source column, or the bytes that stand there instead
 */
export function columnsContent(
  sources: SourceCache,
  { file, begin, end }: Pick<TensorRef, "file" | "begin" | "end">,
  rows: number,
  width: number,
  columns: readonly (number | Uint8Array)[],
): Content {
  const rowBytes = (end - begin) / rows;
  const outBytes = columns.length * width;
  return {
    bytes: rows * outBytes,
    fill: async (offset, into, signal) => {
      const step = Math.max(1, Math.floor(gatherBytes / rowBytes));
      for (let at = 0; at < into.length; ) {
        const row = Math.floor((offset + at) / outBytes);
        const count = Math.min(step, Math.ceil((offset + into.length) / outBytes) - row);
        const source = new Uint8Array(count * rowBytes);
        await sources.use(file, (open) =>
          open.read(begin + row * rowBytes, source, signal ? { signal } : {}),
        );
        for (const stop = Math.min(into.length, (row + count) * outBytes - offset); at < stop; at += width) {
          const inside = offset + at - row * outBytes;
          const column = columns[(inside % outBytes) / width] as number | Uint8Array;
          const start = Math.floor(inside / outBytes) * rowBytes;
          into.set(
            typeof column === "number"
              ? source.subarray(start + column * width, start + (column + 1) * width)
              : column,
            at,
          );
        }
      }
    },
  };
}

/** Float32 values of all sources together that a merge holds at once: 8 MiB, which stay in a processor's cache. */
const mergeValues = 2 << 20;

/** Memory that all merges of one checkpoint use in turn; contents are filled one at a time. */
export class MergeScratch {
  readonly #buffers: Uint8Array[] = [];

  bytes(position: number, length: number): Uint8Array {
    let buffer = this.#buffers[position];
    if (!buffer || buffer.length < length) {
      buffer = new Uint8Array(length);
      this.#buffers[position] = buffer;
    }
    return buffer.subarray(0, length);
  }

  floats(position: number, length: number): Float32Array {
    return new Float32Array(this.bytes(position, length * 4).buffer, 0, length);
  }
}

/**
 * The weighted sum of tensors of one shape, computed and rounded by the definitions in core (`mergeRows`,
 * `roundToDtype`), in pieces, so that memory does not grow with the tensors.
 * @param stored dtype and shape of the result; without any `refs` it is zero
 * @param name of the result, for messages
 */
export function mergeContent(
  sources: SourceCache,
  scratch: MergeScratch,
  refs: readonly TensorRef[],
  coefficients: readonly number[],
  stored: Pick<TensorRef, "dtype" | "shape">,
  name: string,
): Content {
  const { dtype, shape } = stored;
  const width = dtypeBytes[dtype];
  const count = elementCount(shape);
  const most = Math.max(4096, Math.floor(mergeValues / (refs.length + 1)));
  const readValues = async (
    ref: TensorRef,
    position: number,
    first: number,
    size: number,
    signal?: AbortSignal,
  ) => {
    const bytes = scratch.bytes(2 * position + 1, size * dtypeBytes[ref.dtype]);
    const values = scratch.floats(2 * position + 2, size);
    const begin = ref.begin + first * dtypeBytes[ref.dtype];
    await sources.use(ref.file, (source) => source.read(begin, bytes, signal ? { signal } : {}));
    const bad = decodeValues(ref.dtype, bytes, values);
    if (bad >= 0) throw badValue(ref, first + bad, values[bad] as number);
    return values;
  };
  return {
    bytes: count * width,
    fill: async (offset, into, signal) => {
      const first = offset / width;
      const total = into.length / width;
      for (let at = 0; at < total; at += most) {
        const size = Math.min(most, total - at);
        const values = await Promise.all(
          refs.map((ref, position) => readValues(ref, position, first + at, size, signal)),
        );
        const merged = scratch.floats(0, size);
        mergeRows(values, coefficients, merged);
        const bad = encodeRounded(dtype, merged, into.subarray(at * width, (at + size) * width));
        if (bad >= 0) throw mergeOverflow(name, first + at + bad);
      }
    },
  };
}

export function mergeOverflow(name: string, position: number): CoppiceError {
  return new CoppiceError(
    "COPPICE_PLAN_EXPORT",
    `the merged tensor ${name} exceeds the range of float32 at value ${position}`,
    { hint: "the plan's merge coefficients are too large", details: { tensor: name } },
  );
}
