import { CoppiceError, type DType, dtypeBytes, elementCount } from "@coppice/core";
import { memoryFolder } from "./folder.js";
import type { FormatLimits } from "./limits.js";
import { readSafetensorsHeader } from "./safetensors-header.js";

/** A tensor in memory. */
export interface TensorBytes {
  readonly dtype: DType;
  readonly shape: readonly number[];
  /** Row-major, little-endian, aligned to the size of `dtype`. */
  readonly bytes: Uint8Array;
}

/** A small safetensors file as a whole, such as a statistics file. Large ones are read by range instead. */
export interface SafetensorsContent {
  readonly tensors: ReadonlyMap<string, TensorBytes>;
  readonly metadata: ReadonlyMap<string, string>;
}

/**
 * Reads a safetensors file that is in memory. The tensors are copies, so the file's bytes may be reused.
 * @param file name for messages
 * @throws those of `readSafetensorsHeader`
 */
export async function parseSafetensors(
  bytes: Uint8Array,
  file: string,
  options: { limits?: FormatLimits } = {},
): Promise<SafetensorsContent> {
  const source = await memoryFolder({ file: bytes }).open("file");
  const { tensors, metadata } = await readSafetensorsHeader(source, file, options);
  return {
    metadata,
    tensors: new Map(
      tensors.map(({ name, dtype, shape, begin, end }) => [
        name,
        { dtype, shape, bytes: bytes.slice(begin, end) },
      ]),
    ),
  };
}

/** A safetensors file of these tensors. Equal content gives equal bytes. */
export function serializeSafetensors(
  tensors: ReadonlyMap<string, TensorBytes>,
  metadata: ReadonlyMap<string, string> = new Map(),
): Uint8Array {
  const entries = [...tensors].map(([name, tensor]) => ({ name, ...tensor }));
  for (const { name, dtype, shape, bytes } of entries) {
    if (bytes.length !== elementCount(shape) * dtypeBytes[dtype]) {
      throw new CoppiceError(
        "COPPICE_FORMAT_SHAPE",
        `tensor ${name} has ${bytes.length} bytes, its shape [${shape.join(", ")}] of ${dtype} needs ${elementCount(shape) * dtypeBytes[dtype]}`,
      );
    }
  }
  const { header, order } = layOutSafetensors(entries, metadata);
  const file = new Uint8Array(order.reduce((sum, { bytes }) => sum + bytes.length, header.length));
  file.set(header);
  let at = header.length;
  for (const { bytes } of order) {
    file.set(bytes, at);
    at += bytes.length;
  }
  return file;
}

/**
 * The header of a safetensors file, its length field included, and the order in which the tensors follow it: by
 * descending element size, so that every tensor is aligned to its own, else as given.
 */
export function layOutSafetensors<T extends { name: string; dtype: DType; shape: readonly number[] }>(
  tensors: readonly T[],
  metadata: ReadonlyMap<string, string>,
): { header: Uint8Array; order: T[] } {
  const order = [...tensors].sort((a, b) => dtypeBytes[b.dtype] - dtypeBytes[a.dtype]);
  const parts: string[] = [];
  if (metadata.size > 0) {
    const pairs = [...metadata].map(([key, value]) => `${JSON.stringify(key)}:${JSON.stringify(value)}`);
    parts.push(`"__metadata__":{${pairs.join(",")}}`);
  }
  let at = 0;
  for (const { name, dtype, shape } of order) {
    if (name === "__metadata__") {
      throw new CoppiceError("COPPICE_FORMAT_HEADER", "no tensor can be named __metadata__ in safetensors");
    }
    const end = at + elementCount(shape) * dtypeBytes[dtype];
    // Built as text, because a tensor may be called __proto__.
    parts.push(
      `${JSON.stringify(name)}:{"dtype":"${dtype}","shape":[${shape.join(",")}],"data_offsets":[${at},${end}]}`,
    );
    at = end;
  }
  const json = new TextEncoder().encode(`{${parts.join(",")}}`);
  const length = Math.ceil(json.length / 8) * 8;
  const header = new Uint8Array(8 + length).fill(0x20);
  new DataView(header.buffer).setBigUint64(0, BigInt(length), true);
  header.set(json, 8);
  return { header, order };
}
