import { CoppiceError, elementCount, type TensorRef, throwIfAborted, type WeightReader } from "@coppice/core";
import { firstNonFinite } from "./decode.js";
import type { ByteSource } from "./folder.js";
import { readPackedValues, readQuantizedMatrix } from "./packed-reader.js";
import type { SourceCache } from "./source-cache.js";
import { checkStored, decodeElements, elementBytes, scalesRef, storedElements } from "./stored-elements.js";

/** Bytes decoded at a time: large reads, yet two of them stay in a processor's cache. */
const chunkBytes = 1 << 20;
/** Largest single read of values that need no decoding, so that an abort is noticed soon. */
const directBytes = 64 << 20;

/** Reads tensors of the files that `sources` opens. Reads may overlap. */
export function createWeightReader(sources: SourceCache): WeightReader {
  const read: WeightReader["read"] = async (ref, options = {}) => {
    const { signal } = options;
    throwIfAborted(signal, `reading ${ref.name}`);
    const count = elementCount(ref.shape);
    const out = options.into ?? new Float32Array(count);
    checkStored(ref);
    if (out.length !== count) {
      throw new CoppiceError(
        "COPPICE_INTERNAL",
        `${ref.name} has ${count} values; the array to fill has ${out.length}`,
      );
    }
    if (ref.scales?.format === "packed") {
      await readPackedValues({ read, sources }, ref, ref.scales, out, signal);
      const bad = firstNonFinite(out);
      if (bad >= 0) throw badValue(ref, bad, out[bad] as number);
      return out;
    }
    const factors = ref.scales && (await read(scalesRef(ref.scales), signal ? { signal } : {}));
    await sources.use(ref.file, (source) =>
      ref.dtype === "F32" && !ref.view && !ref.scales
        ? readDirectly(source, ref, out, signal)
        : readDecoded(source, ref, ref.view ? viewSpans(ref, out) : wholeSpans(ref, out), factors, signal),
    );
    // Plain values were checked while they were decoded.
    if (ref.view || ref.scales || ref.dtype === "F32") {
      const bad = firstNonFinite(out);
      if (bad >= 0) throw badValue(ref, bad, out[bad] as number);
    }
    return out;
  };
  return {
    read,
    readQuantized: async (ref, { signal } = {}) => {
      if (ref.scales?.format !== "packed") return undefined;
      throwIfAborted(signal, `reading ${ref.name}`);
      checkStored(ref);
      return readQuantizedMatrix({ read, sources }, ref, ref.scales, signal);
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
}

/** Stored elements that are read together, and what is done with their values. */
interface Span {
  readonly first: number;
  readonly count: number;
  /** Where the values go as they are; absent: `place` takes them. */
  readonly into?: Float32Array;
  place?(values: Float32Array): void;
}

function* wholeSpans(ref: TensorRef, out: Float32Array): Generator<Span> {
  const size = chunkBytes / elementBytes(ref);
  for (let first = 0; first < out.length; first += size) {
    const count = Math.min(size, out.length - first);
    yield { first, count, into: out.subarray(first, first + count) };
  }
}

interface Axis {
  readonly size: number;
  /** Distance of neighbours among the stored elements, and in the result. */
  readonly stride: number;
  readonly step: number;
}

/** Walks a view in the order of the file, several rows of it at a time. */
function* viewSpans(ref: TensorRef, out: Float32Array): Generator<Span> {
  const [outer, inner] = viewAxes(ref);
  const { offset } = ref.view as NonNullable<TensorRef["view"]>;
  const most = chunkBytes / elementBytes(ref);
  const wide = Math.min(inner.size, Math.max(1, Math.floor(most / Math.max(1, inner.stride))));
  const high =
    wide < inner.size ? 1 : Math.min(outer.size, Math.max(1, Math.floor(most / Math.max(1, outer.stride))));
  for (let a = 0; a < outer.size; a += high) {
    const rows = Math.min(high, outer.size - a);
    for (let b = 0; b < inner.size; b += wide) {
      const columns = Math.min(wide, inner.size - b);
      yield {
        first: offset + a * outer.stride + b * inner.stride,
        count: (rows - 1) * outer.stride + (columns - 1) * inner.stride + 1,
        place: (values) => {
          const start = a * outer.step + b * inner.step;
          // The loop that writes side by side is the inner one.
          const [first, second, m, n] =
            outer.step < inner.step ? [inner, outer, columns, rows] : [outer, inner, rows, columns];
          for (let i = 0; i < m; i++) {
            let from = i * first.stride;
            let to = start + i * first.step;
            for (let j = 0; j < n; j++) {
              out[to] = values[from] as number;
              from += second.stride;
              to += second.step;
            }
          }
        },
      };
    }
  }
}

/** The axes of a view by descending stride. Weights have at most two. */
function viewAxes({ name, shape, view }: TensorRef): [Axis, Axis] {
  const axes = shape
    .map((size, axis) => ({
      size,
      stride: view?.strides[axis] as number,
      step: elementCount(shape.slice(axis + 1)),
    }))
    .filter(({ size }) => size !== 1)
    .sort((a, b) => b.stride - a.stride);
  if (axes.length > 2)
    throw new CoppiceError("COPPICE_INTERNAL", `the view of ${name} has ${axes.length} axes`);
  const single = { size: 1, stride: 0, step: 0 };
  while (axes.length < 2) axes.unshift(single);
  return axes as [Axis, Axis];
}

/** Reads the next span while the present one is decoded. */
async function readDecoded(
  source: ByteSource,
  ref: TensorRef,
  spans: Generator<Span>,
  factors: Float32Array | undefined,
  signal: AbortSignal | undefined,
): Promise<void> {
  const width = elementBytes(ref);
  const buffers: [Uint8Array, Uint8Array] = [new Uint8Array(0), new Uint8Array(0)];
  let scratch = new Float32Array(0);
  let turn: 0 | 1 = 0;
  const readNext = () => {
    const { value: span } = spans.next();
    if (!span) return undefined;
    // Two elements of half a byte are read at a time.
    const first = width < 1 ? span.first - (span.first % 2) : span.first;
    const end = width < 1 ? Math.ceil((span.first + span.count) / 2) * 2 : span.first + span.count;
    const count = Math.min(end, storedElements(ref)) - first;
    if (buffers[turn].length < count * width) buffers[turn] = new Uint8Array(count * width);
    const bytes = buffers[turn].subarray(0, count * width);
    turn = turn === 0 ? 1 : 0;
    return {
      span,
      first,
      count,
      bytes,
      done: source.read(ref.begin + first * width, bytes, signal ? { signal } : {}),
    };
  };
  for (let pending = readNext(); pending; ) {
    const { span, first, count, bytes, done } = pending;
    await done;
    const next = readNext();
    // Taken up by `await done` above, unless something else fails first.
    next?.done.catch(() => {});
    if (!span.into && scratch.length < count) scratch = new Float32Array(count);
    const values = span.into ?? scratch.subarray(0, count);
    const bad = decodeElements(ref, first, bytes, factors, values);
    if (bad >= 0) {
      await next?.done.catch(() => {});
      throw badValue(ref, first + bad, values[bad] as number);
    }
    span.place?.(values.subarray(span.first - first));
    pending = next;
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
