import { CoppiceError } from "./errors.js";

/** Float32 values as text for JSON: base64 of their little-endian bytes, so that every bit survives. */
export function packFloats(values: Float32Array): string {
  const view = new DataView(new ArrayBuffer(values.length * 4));
  for (let i = 0; i < values.length; i++) view.setFloat32(i * 4, values[i] as number, true);
  const bytes = new Uint8Array(view.buffer);
  let text = "";
  // In pieces, because arguments of a call are limited to some 65,000.
  for (let from = 0; from < bytes.length; from += 0x8000) {
    text += String.fromCharCode(...bytes.subarray(from, from + 0x8000));
  }
  return btoa(text);
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
  const binary = text.length === characters ? decode(text) : undefined;
  if (
    binary === undefined ||
    binary.length % 4 !== 0 ||
    (count !== undefined && binary.length !== count * 4)
  ) {
    throw new CoppiceError(
      "COPPICE_FORMAT_SHAPE",
      `${what}: ${text.length} characters are not the base64 text of ${count ?? "whole"} float32 values`,
    );
  }
  const view = new DataView(new ArrayBuffer(binary.length));
  for (let i = 0; i < binary.length; i++) view.setUint8(i, binary.charCodeAt(i));
  const values = Float32Array.from({ length: binary.length / 4 }, (_, i) => view.getFloat32(i * 4, true));
  const bad = values.findIndex((value) => !Number.isFinite(value));
  if (bad >= 0) throw new CoppiceError("COPPICE_FORMAT_NAN", `${what}: value ${bad} is ${values[bad]}`);
  return values;
}

interface PackedOptions {
  readonly count?: number;
  /** What the text is, for messages. */
  readonly what?: string;
}

function decode(text: string): string | undefined {
  try {
    return atob(text);
  } catch {
    return undefined;
  }
}
