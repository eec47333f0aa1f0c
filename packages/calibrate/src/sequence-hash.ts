import { sha256 } from "@noble/hashes/sha2.js";
import { bytesToHex } from "@noble/hashes/utils.js";

/** SHA-256 over every sequence's length and tokens as little-endian 32-bit integers, 64 hex digits. */
export function hashSequences(sequences: readonly Int32Array[]): string {
  const hash = sha256.create();
  for (const sequence of sequences) hash.update(sequenceBytes(sequence));
  return bytesToHex(hash.digest());
}

/** A sequence's length and tokens as little-endian 32-bit integers. */
export function sequenceBytes(sequence: Int32Array): Uint8Array {
  const bytes = new DataView(new ArrayBuffer(4 * (1 + sequence.length)));
  bytes.setInt32(0, sequence.length, true);
  sequence.forEach((token, i) => {
    bytes.setInt32(4 * (i + 1), token, true);
  });
  return new Uint8Array(bytes.buffer);
}
