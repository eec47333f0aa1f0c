import { CoppiceError, type DType, dtypeBytes, type TensorRef } from "@coppice/core";
import { type ByteSource, truncatedFile } from "./folder.js";
import { hasDuplicateKeys, parseJsonObject, showValue } from "./json-object.js";
import { defaultLimits, type FormatLimits } from "./limits.js";

/** What a safetensors file says about itself. */
export interface SafetensorsHeader {
  /** Tensors in the order of their bytes. */
  readonly tensors: readonly TensorRef[];
  readonly metadata: ReadonlyMap<string, string>;
  /** False: the file ends before its tensors do, which `headersOnly` permits. */
  readonly complete: boolean;
}

const lengthBytes = 8;

/**
 * Reads and checks the header of a safetensors file; no tensor is read. Every byte of the file must belong to
 * exactly one tensor.
 * @param file name for messages and for the `file` of the tensors
 * @param options `headersOnly`: the file may end anywhere after its header
 * @throws COPPICE_FORMAT_HEADER, COPPICE_FORMAT_OFFSETS, COPPICE_FORMAT_SHAPE, COPPICE_FORMAT_DTYPE,
 * COPPICE_FORMAT_TRUNCATED, COPPICE_FORMAT_LIMIT, COPPICE_IO_READ, COPPICE_ABORTED
 */
export async function readSafetensorsHeader(
  source: ByteSource,
  file: string,
  options: { limits?: FormatLimits; headersOnly?: boolean; signal?: AbortSignal } = {},
): Promise<SafetensorsHeader> {
  const { limits = defaultLimits, headersOnly = false, signal } = options;
  if (source.size < lengthBytes) throw truncatedFile(file, lengthBytes, source.size);
  const prefix = new Uint8Array(lengthBytes);
  await source.read(0, prefix, signal ? { signal } : {});
  const length = headerLength(prefix, file, source.size, limits);
  const header = new Uint8Array(length);
  await source.read(lengthBytes, header, signal ? { signal } : {});
  if (!headersOnly) return parseSafetensorsHeader(header, file, source.size, limits);
  const found = parseSafetensorsHeader(header, file, undefined, limits);
  const end = found.tensors.at(-1)?.end ?? lengthBytes + length;
  // Bytes after the last tensor are a fault in any case.
  if (source.size > end) return parseSafetensorsHeader(header, file, source.size, limits);
  return { ...found, complete: source.size === end };
}

function headerLength(prefix: Uint8Array, file: string, fileSize: number, limits: FormatLimits): number {
  const length = new DataView(prefix.buffer, prefix.byteOffset).getBigUint64(0, true);
  if (length > BigInt(limits.headerBytes)) {
    throw new CoppiceError(
      "COPPICE_FORMAT_LIMIT",
      `the header of ${file} claims ${length} bytes, at most ${limits.headerBytes} are read`,
      { hint: "is this a safetensors file?", details: { file, length: String(length) } },
    );
  }
  if (lengthBytes + Number(length) > fileSize) {
    throw new CoppiceError(
      "COPPICE_FORMAT_HEADER",
      `the header of ${file} claims ${length} bytes, the file has only ${fileSize}`,
      {
        hint: "the file is damaged or no safetensors file",
        details: { file, length: Number(length), fileSize },
      },
    );
  }
  return Number(length);
}

/**
 * The checks of `readSafetensorsHeader` on the JSON part of a header.
 * @param fileSize that of the whole file; undefined: not to be checked
 */
export function parseSafetensorsHeader(
  json: Uint8Array,
  file: string,
  fileSize: number | undefined,
  limits: FormatLimits = defaultLimits,
): SafetensorsHeader {
  const parsed = parseJsonObject(json, `the header of ${file}`, "COPPICE_FORMAT_HEADER");
  if (json[0] !== 0x7b) throw malformed(file, "does not begin with {");
  if (hasDuplicateKeys(json, parsed)) throw malformed(file, "has a key twice");
  const start = lengthBytes + json.length;
  const tensors: TensorRef[] = [];
  let metadata: ReadonlyMap<string, string> = new Map();
  for (const [name, entry] of Object.entries(parsed)) {
    if (name === "__metadata__") {
      metadata = parseMetadata(entry, file, limits);
      continue;
    }
    if (tensors.length >= limits.tensors) throw overLimit(file, `more than ${limits.tensors} tensors`);
    if (name.length > limits.nameLength) {
      throw overLimit(file, `a tensor name of ${name.length} characters (at most ${limits.nameLength})`);
    }
    tensors.push(parseTensor(name, entry, file, start, fileSize, limits));
  }
  tensors.sort((a, b) => a.begin - b.begin || a.end - b.end);
  checkCoverage(tensors, file, start, fileSize);
  return { tensors, metadata, complete: true };
}

function parseTensor(
  name: string,
  entry: unknown,
  file: string,
  start: number,
  fileSize: number | undefined,
  limits: FormatLimits,
): TensorRef {
  const where = `tensor ${showValue(name)}`;
  if (typeof entry !== "object" || entry === null || Array.isArray(entry)) {
    throw malformed(file, `has ${showValue(entry)} for ${where}, expected an object`);
  }
  const fields = new Map(Object.entries(entry));
  for (const key of fields.keys()) {
    if (key !== "dtype" && key !== "shape" && key !== "data_offsets") {
      throw malformed(file, `has the unknown key ${showValue(key)} in ${where}`);
    }
  }
  const dtype = fields.get("dtype");
  if (typeof dtype !== "string" || !Object.hasOwn(dtypeBytes, dtype)) {
    throw new CoppiceError(
      "COPPICE_FORMAT_DTYPE",
      `${where} in ${file} has dtype ${showValue(dtype)}; readable are ${Object.keys(dtypeBytes).join(", ")}`,
      { details: { file, tensor: name, dtype: showValue(dtype) } },
    );
  }
  const shape = fields.get("shape");
  if (!Array.isArray(shape)) throw malformed(file, `has shape ${showValue(shape)} for ${where}`);
  if (shape.length > limits.dimensions) {
    throw overLimit(file, `${shape.length} dimensions in ${where} (at most ${limits.dimensions})`);
  }
  let bytes = dtypeBytes[dtype as DType];
  for (const size of shape) {
    if (!Number.isSafeInteger(size) || size < 0) {
      throw malformed(file, `has ${showValue(size)} in the shape of ${where}, expected an integer from 0`);
    }
    bytes *= size;
  }
  // A product beyond 2**53 is inexact but still larger than any file, and times 0 it is 0 again only if a size is.
  const offsets = fields.get("data_offsets");
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every((at) => Number.isSafeInteger(at))) {
    throw malformed(file, `has data_offsets ${showValue(offsets)} for ${where}, expected two integers`);
  }
  const [begin, end] = offsets as [number, number];
  if (begin < 0 || end < begin) {
    throw badOffsets(file, `${where} has data_offsets [${begin}, ${end}], expected 0 <= begin <= end`);
  }
  if (bytes !== end - begin) {
    throw new CoppiceError(
      "COPPICE_FORMAT_SHAPE",
      `${where} in ${file} takes ${end - begin} bytes, its shape [${shape.join(", ")}] of ${dtype} needs ${bytes}`,
      { details: { file, tensor: name, shape, dtype, bytes: end - begin, expected: bytes } },
    );
  }
  if (fileSize !== undefined && start + end > fileSize) {
    // The most common cause by far is a download that stopped early.
    throw new CoppiceError(
      "COPPICE_FORMAT_TRUNCATED",
      `${where} ends at byte ${start + end} of ${file}, which has ${fileSize} bytes`,
      {
        hint: "the file was probably not downloaded completely",
        details: { file, tensor: name, end: start + end, fileSize },
      },
    );
  }
  return {
    name,
    dtype: dtype as DType,
    shape: shape as number[],
    file,
    begin: start + begin,
    end: start + end,
  };
}

function checkCoverage(
  tensors: readonly TensorRef[],
  file: string,
  start: number,
  fileSize: number | undefined,
): void {
  let at = start;
  let previous: TensorRef | undefined;
  for (const tensor of tensors) {
    if (tensor.begin < at) {
      const other = showValue(previous?.name);
      throw badOffsets(
        file,
        `tensors ${other} and ${showValue(tensor.name)} overlap at byte ${tensor.begin}`,
      );
    }
    if (tensor.begin > at) {
      throw badOffsets(
        file,
        `bytes ${at} to ${tensor.begin} before ${showValue(tensor.name)} belong to no tensor`,
      );
    }
    at = tensor.end;
    previous = tensor;
  }
  if (fileSize !== undefined && at !== fileSize)
    throw badOffsets(file, `bytes ${at} to ${fileSize} at the end belong to no tensor`);
}

function parseMetadata(value: unknown, file: string, limits: FormatLimits): ReadonlyMap<string, string> {
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw malformed(file, `has ${showValue(value)} for __metadata__, expected an object`);
  }
  const metadata = new Map<string, string>();
  let length = 0;
  for (const [key, text] of Object.entries(value)) {
    if (typeof text !== "string") {
      throw malformed(
        file,
        `has ${showValue(text)} for ${showValue(key)} in __metadata__, expected a string`,
      );
    }
    length += key.length + text.length;
    metadata.set(key, text);
  }
  if (metadata.size > limits.metadataEntries || length > limits.metadataLength) {
    throw overLimit(
      file,
      `${metadata.size} metadata entries of ${length} characters ` +
        `(at most ${limits.metadataEntries} of ${limits.metadataLength})`,
    );
  }
  return metadata;
}

function malformed(file: string, what: string): CoppiceError {
  return new CoppiceError("COPPICE_FORMAT_HEADER", `the header of ${file} ${what}`, { details: { file } });
}

function badOffsets(file: string, what: string): CoppiceError {
  return new CoppiceError("COPPICE_FORMAT_OFFSETS", `${file}: ${what}`, { details: { file } });
}

function overLimit(file: string, what: string): CoppiceError {
  return new CoppiceError("COPPICE_FORMAT_LIMIT", `the header of ${file} has ${what}`, { details: { file } });
}
