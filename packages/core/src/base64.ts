const alphabet = new TextEncoder().encode("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/");
const padding = 61;
/** Marks characters that base64 does not have; no six bits reach it. */
const none = 0x40;

/** Six bits by character. */
const sixBits = new Uint8Array(256).fill(none);
for (const [bits, character] of alphabet.entries()) sixBits[character] = bits;

/** Base64 with padding (RFC 4648, section 4). Typed arrays throughout: plans may hold megabytes of it. */
export function toBase64(bytes: Uint8Array): string {
  const text = new Uint8Array(4 * Math.ceil(bytes.length / 3));
  for (let i = 0, to = 0; i < bytes.length; i += 3, to += 4) {
    // Bytes behind the end read as 0.
    const word = ((bytes[i] as number) << 16) | ((bytes[i + 1] ?? 0) << 8) | (bytes[i + 2] ?? 0);
    text[to] = alphabet[word >>> 18] as number;
    text[to + 1] = alphabet[(word >>> 12) & 63] as number;
    text[to + 2] = alphabet[(word >>> 6) & 63] as number;
    text[to + 3] = alphabet[word & 63] as number;
  }
  const spare = (3 - (bytes.length % 3)) % 3;
  text.fill(padding, text.length - spare);
  return new TextDecoder().decode(text);
}

/** The inverse of `toBase64`, for untrusted text; undefined for text that it does not write. */
export function fromBase64(text: string): Uint8Array | undefined {
  const characters = new TextEncoder().encode(text);
  const { length } = characters;
  // Characters beyond ASCII encode as several bytes.
  if (length !== text.length || length % 4 !== 0) return undefined;
  const spare = text.endsWith("==") ? 2 : text.endsWith("=") ? 1 : 0;
  characters.fill(alphabet[0] as number, length - spare);
  const bytes = new Uint8Array((length / 4) * 3);
  let seen = 0;
  for (let i = 0, to = 0; i < length; i += 4, to += 3) {
    const a = sixBits[characters[i] as number] as number;
    const b = sixBits[characters[i + 1] as number] as number;
    const c = sixBits[characters[i + 2] as number] as number;
    const d = sixBits[characters[i + 3] as number] as number;
    seen |= a | b | c | d;
    const word = (a << 18) | (b << 12) | (c << 6) | d;
    bytes[to] = word >>> 16;
    bytes[to + 1] = word >>> 8;
    bytes[to + 2] = word;
  }
  const end = bytes.length - spare;
  // Bits behind the last byte are 0, so that equal bytes have one text.
  const clean = (spare < 1 || bytes[end] === 0) && (spare < 2 || bytes[end + 1] === 0);
  return (seen & none) === 0 && clean ? bytes.subarray(0, end) : undefined;
}
