import { type GgufTensorType, tensorBytes, tensorTypes } from "./tensor-types.js";

/** A value of the metadata, with its type in the file. */
export type GgufValue =
  | { readonly type: "uint32"; readonly value: number }
  | { readonly type: "float32"; readonly value: number }
  | { readonly type: "bool"; readonly value: boolean }
  | { readonly type: "string"; readonly value: string }
  | { readonly type: "strings"; readonly value: readonly string[] }
  | { readonly type: "int32s"; readonly value: readonly number[] }
  | { readonly type: "float32s"; readonly value: readonly number[] };

/** Keys and values in the order of the file. */
export type GgufMetadata = ReadonlyMap<string, GgufValue>;

/** What the header says of a tensor. */
export interface GgufTensorInfo {
  readonly name: string;
  readonly type: GgufTensorType;
  /** Outermost axis first; the file has them the other way round. */
  readonly shape: readonly number[];
}

/** Every tensor begins at a multiple of this (`general.alignment`, whose default it is). */
export const alignment = 32;

/** Numbers of the types of values (`gguf_metadata_value_type`). */
const valueCodes = { uint32: 4, int32: 5, float32: 6, bool: 7, string: 8, array: 9 } as const;

export function alignedBytes(bytes: number): number {
  return Math.ceil(bytes / alignment) * alignment;
}

/**
 * Everything before the tensors of a GGUF file of version 3, little-endian, filled up to `alignment`; tensors follow in
 * the order given, each filled up likewise. Source: docs/gguf.md of ggml.
 */
export function encodeHeader(metadata: GgufMetadata, tensors: readonly GgufTensorInfo[]): Uint8Array {
  const out = new ByteWriter();
  out.bytes(new TextEncoder().encode("GGUF"));
  out.uint32(3);
  out.uint64(tensors.length);
  out.uint64(metadata.size);
  for (const [key, value] of metadata) {
    out.string(key);
    writeValue(out, value);
  }
  let offset = 0;
  for (const { name, type, shape } of tensors) {
    out.string(name);
    out.uint32(shape.length);
    for (const size of [...shape].reverse()) out.uint64(size);
    out.uint32(tensorTypes[type].code);
    out.uint64(offset);
    offset += alignedBytes(
      tensorBytes(
        type,
        shape.reduce((product, size) => product * size, 1),
      ),
    );
  }
  return out.finish();
}

function writeValue(out: ByteWriter, { type, value }: GgufValue): void {
  if (type === "strings") writeArray(out, "string", value, (item) => out.string(item));
  else if (type === "int32s") writeArray(out, "int32", value, (item) => out.int32(item));
  else if (type === "float32s") writeArray(out, "float32", value, (item) => out.float32(item));
  else {
    out.uint32(valueCodes[type]);
    if (type === "string") out.string(value);
    else if (type === "bool") out.bytes(Uint8Array.of(value ? 1 : 0));
    else if (type === "float32") out.float32(value);
    else out.uint32(value);
  }
}

function writeArray<T>(
  out: ByteWriter,
  type: keyof typeof valueCodes,
  items: readonly T[],
  write: (item: T) => void,
): void {
  out.uint32(valueCodes.array);
  out.uint32(valueCodes[type]);
  out.uint64(items.length);
  for (const item of items) write(item);
}

/** Bytes one after the other, in a buffer that grows. */
class ByteWriter {
  #bytes = new Uint8Array(1 << 16);
  #view = new DataView(this.#bytes.buffer);
  #length = 0;
  readonly #text = new TextEncoder();

  bytes(bytes: Uint8Array): void {
    const at = this.#take(bytes.length);
    this.#bytes.set(bytes, at);
  }

  uint32(value: number): void {
    const at = this.#take(4);
    this.#view.setUint32(at, value, true);
  }

  int32(value: number): void {
    const at = this.#take(4);
    this.#view.setInt32(at, value, true);
  }

  float32(value: number): void {
    const at = this.#take(4);
    this.#view.setFloat32(at, value, true);
  }

  uint64(value: number): void {
    const at = this.#take(8);
    this.#view.setBigUint64(at, BigInt(value), true);
  }

  string(text: string): void {
    const bytes = this.#text.encode(text);
    this.uint64(bytes.length);
    this.bytes(bytes);
  }

  finish(): Uint8Array {
    this.#take(alignedBytes(this.#length) - this.#length);
    return this.#bytes.subarray(0, this.#length);
  }

  /** Makes room and returns where it is. */
  #take(count: number): number {
    const at = this.#length;
    this.#length += count;
    if (this.#length > this.#bytes.length) {
      const larger = new Uint8Array(Math.max(this.#length, 2 * this.#bytes.length));
      larger.set(this.#bytes);
      this.#bytes = larger;
      this.#view = new DataView(larger.buffer);
    }
    return at;
  }
}
