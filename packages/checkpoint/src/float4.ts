/** Magnitude of every FP4 E2M1 code without its sign bit (OCP Microscaling Formats 1.0, section 5.3.3). */
const magnitudes = [0, 0.5, 1, 1.5, 2, 3, 4, 6];
const values = Float32Array.from({ length: 16 }, (_, code) => {
  const magnitude = magnitudes[code & 7] as number;
  return code & 8 ? -magnitude : magnitude;
});

/**
 * Widens FP4 E2M1 values, two to a byte, low nibble first.
 * @param out two elements for every byte
 */
export function decodeFloat4(bytes: Uint8Array, out: Float32Array): void {
  for (let i = 0; i < bytes.length; i++) {
    const pair = bytes[i] as number;
    out[2 * i] = values[pair & 15] as number;
    out[2 * i + 1] = values[pair >>> 4] as number;
  }
}

/** Narrows values that FP4 E2M1 holds; an even number of them. */
export function encodeFloat4(codes: Float32Array, bytes: Uint8Array): void {
  for (let i = 0; i < bytes.length; i++) {
    bytes[i] = nibble(codes[2 * i] as number) | (nibble(codes[2 * i + 1] as number) << 4);
  }
}

function nibble(value: number): number {
  const magnitude = Math.abs(value);
  const code = magnitude <= 2 ? 2 * magnitude : magnitude === 6 ? 7 : magnitude + 2;
  return value < 0 || Object.is(value, -0) ? code | 8 : code;
}

/** Narrows powers of two from 2^-127 to 2^127 to F8_E8M0 codes. */
export function encodePowers(powers: Float32Array, bytes: Uint8Array): void {
  for (let i = 0; i < bytes.length; i++) bytes[i] = Math.round(Math.log2(powers[i] as number)) + 127;
}
