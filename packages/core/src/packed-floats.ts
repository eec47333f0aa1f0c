import { fromBase64, toBase64 } from "./base64.js";
import { roundToDtype } from "./dtype-round.js";
import { CoppiceError } from "./errors.js";

/** Float32 values as text for JSON: base64 of their little-endian bytes, so that every bit survives. */
export function packFloats(values: Float32Array): string {
  const view = new DataView(new ArrayBuffer(values.length * 4));
  for (let i = 0; i < values.length; i++) view.setFloat32(i * 4, values[i] as number, true);
  return toBase64(new Uint8Array(view.buffer));
}

/**
 * The inverse of `packFloats`, for untrusted text.
 * @param count values expected, if known
 * @throws COPPICE_FORMAT_SHAPE, COPPICE_FORMAT_NAN
 */
export function unpackFloats(
  text: string,
  { count, what = "packed values" }: PackedOptions = {},
): Float32Array {
  const characters = count === undefined ? text.length : 4 * Math.ceil((count * 4) / 3);
  // The length is checked before anything is decoded.
  const bytes = text.length === characters ? fromBase64(text) : undefined;
  if (!bytes || bytes.length % 4 !== 0 || (count !== undefined && bytes.length !== count * 4)) {
    throw wrongSize(text, "float32", count, what);
  }
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const values = new Float32Array(bytes.length / 4);
  for (let i = 0; i < values.length; i++) values[i] = view.getFloat32(i * 4, true);
  checkFinite(values, what, 0);
  return values;
}

/** Most values that `packBfloat16` takes: what a string can hold in every JavaScript engine, 2^29 - 24 characters. */
const mostBfloat16 = 3 * 2 ** 26 - 12;

/**
 * Values as text for JSON, half as long as `packFloats`: each is rounded to bfloat16 (to nearest, ties to even; beyond the
 * largest finite value to that one), the upper half of a float32; base64 of the little-endian bytes.
 * @throws COPPICE_FORMAT_NAN; COPPICE_FORMAT_SHAPE for more values than a text can hold
 */
export function packBfloat16(values: Float32Array): string {
  if (values.length > mostBfloat16) {
    throw new CoppiceError(
      "COPPICE_FORMAT_SHAPE",
      `${values.length} values do not fit in one text, which holds at most ${mostBfloat16} of bfloat16`,
    );
  }
  checkFinite(values, "values to pack", 0);
  const rounded = values.slice();
  roundToDtype(rounded, "BF16");
  const words = new Uint32Array(rounded.buffer);
  const bytes = new Uint8Array(2 * words.length);
  for (let i = 0; i < words.length; i++) {
    const word = words[i] as number;
    bytes[2 * i] = word >>> 16;
    bytes[2 * i + 1] = word >>> 24;
  }
  return toBase64(bytes);
}

/**
 * The inverse of `packBfloat16`, for untrusted text: the values from `from` to `to`, others are not decoded.
 * @param count values that the text must hold, if known
 * @throws COPPICE_FORMAT_SHAPE, COPPICE_FORMAT_NAN
 */
export function unpackBfloat16(
  text: string,
  { count, what = "packed values", from = 0, to }: Bfloat16Options = {},
): Float32Array {
  const held = countBfloat16(text);
  if (held === undefined || (count !== undefined && held !== count)) {
    throw wrongSize(text, "bfloat16", count, what);
  }
  const end = to ?? held;
  if (from < 0 || end < from || end > held) {
    throw new CoppiceError(
      "COPPICE_FORMAT_SHAPE",
      `${what}: values ${from} to ${end} of ${held} are not in it`,
    );
  }
  // Three bytes are four characters.
  const first = Math.floor((2 * from) / 3);
  const bytes = fromBase64(text.slice(4 * first, 4 * Math.ceil((2 * end) / 3)));
  if (!bytes) throw wrongSize(text, "bfloat16", count, what);
  const words = new Uint32Array(end - from);
  for (let i = 0, at = 2 * from - 3 * first; i < words.length; i++, at += 2) {
    words[i] = ((bytes[at] as number) << 16) | ((bytes[at + 1] as number) << 24);
  }
  const values = new Float32Array(words.buffer);
  checkFinite(values, what, from);
  return values;
}

/** Values in a text of `packBfloat16` by its length; undefined for lengths that no such text has. */
export function countBfloat16(text: string): number | undefined {
  const spare = text.endsWith("==") ? 2 : text.endsWith("=") ? 1 : 0;
  const count = ((text.length / 4) * 3 - spare) / 2;
  return Number.isInteger(count) && text.length % 4 === 0 ? count : undefined;
}

interface PackedOptions {
  readonly count?: number;
  /** What the text is, for messages. */
  readonly what?: string;
}

interface Bfloat16Options extends PackedOptions {
  readonly from?: number;
  readonly to?: number;
}

function wrongSize(text: string, type: string, count: number | undefined, what: string): CoppiceError {
  return new CoppiceError(
    "COPPICE_FORMAT_SHAPE",
    `${what}: ${text.length} characters are not the base64 text of ${count ?? "whole"} ${type} values`,
  );
}

function checkFinite(values: Float32Array, what: string, first: number): void {
  for (let i = 0; i < values.length; i++) {
    if (Number.isFinite(values[i])) continue;
    throw new CoppiceError("COPPICE_FORMAT_NAN", `${what}: value ${first + i} is ${values[i]}`);
  }
}
