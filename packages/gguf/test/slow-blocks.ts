/**
 * Values of tensors of GGUF files, written from the description of their blocks: one value at a time, in float64.
 * @param data may go on after the last value
 */
export function slowValues(type: number, data: Uint8Array, count: number): number[] {
  return Array.from({ length: count }, (_, i) => slowValue(type, data, i));
}

function slowValue(type: number, data: Uint8Array, i: number): number {
  const block = Math.floor(i / 32);
  switch (type) {
    case 0:
      return single(data.slice(4 * i, 4 * i + 4));
    case 1:
      return half(data, 2 * i);
    case 2: {
      const at = 18 * block;
      const byte = data[at + 2 + (i % 16)] as number;
      const code = i % 32 < 16 ? byte % 16 : Math.floor(byte / 16);
      return half(data, at) * (code - 8);
    }
    case 8: {
      const at = 34 * block;
      const code = data[at + 2 + (i % 32)] as number;
      return half(data, at) * (code < 128 ? code : code - 256);
    }
    default:
      throw new Error(`type ${type}`);
  }
}

function single(bytes: Uint8Array): number {
  const [d, c, b, a] = bytes as unknown as [number, number, number, number];
  const exponent = (a % 128) * 2 + Math.floor(b / 128);
  const fraction = ((b % 128) * 65536 + c * 256 + d) / 2 ** 23;
  const magnitude = exponent === 0 ? fraction * 2 ** -126 : (1 + fraction) * 2 ** (exponent - 127);
  return a >= 128 ? -magnitude : magnitude;
}

function half(data: Uint8Array, at: number): number {
  const [low, high] = [data[at] as number, data[at + 1] as number];
  const exponent = Math.floor(high / 4) % 32;
  const fraction = ((high % 4) * 256 + low) / 1024;
  const magnitude = exponent === 0 ? fraction * 2 ** -14 : (1 + fraction) * 2 ** (exponent - 15);
  return high >= 128 ? -magnitude : magnitude;
}

/** Largest error that a type may make of a value, given those of its block or, for floats, itself. */
export function slowTolerance(type: number, block: readonly number[], value: number): number {
  const largest = Math.max(...block.map(Math.abs));
  switch (type) {
    case 0:
      return 0;
    case 1:
      return Math.max(Math.abs(value) * 2 ** -11, 2 ** -25);
    // Half a step, and the rounding of the scale by F16, which counts code by code.
    case 8:
      return largest / 127 / 2 + largest * 2 ** -11;
    // Half a step; a whole one at the end that code 15 cannot reach.
    case 2:
      return largest / 8 + largest * 2 ** -11;
    default:
      throw new Error(`type ${type}`);
  }
}
