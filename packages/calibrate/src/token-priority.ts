import { sha256 } from "@noble/hashes/sha2.js";
import { sequenceBytes } from "./sequence-hash.js";

/**
 * Priorities of a sequence's tokens in samples, -ln(u) of numbers u in (0, 1) that are evenly spread: 26 bits from each
 * of two mixes (the finaliser of MurmurHash3) of the sequence's SHA-256 and the position. So a token has the same
 * priority in whatever data its sequence stands.
 */
export function tokenPriorities(sequence: Int32Array): Float64Array {
  const digest = new DataView(sha256(sequenceBytes(sequence)).buffer);
  const [one, two] = [digest.getInt32(0, true), digest.getInt32(4, true)];
  return Float64Array.from(sequence, (_, position) => {
    const high = mix(one ^ Math.imul(position + 1, 0x9e3779b9));
    const low = mix(two ^ Math.imul(position + 1, 0x85ebca6b) ^ high);
    // One half keeps u away from 0; 52 bits leave room for it.
    return -Math.log(((high >>> 6) * 2 ** 26 + (low >>> 6) + 0.5) / 2 ** 52);
  });
}

function mix(word: number): number {
  let mixed = Math.imul(word ^ (word >>> 16), 0x85ebca6b);
  mixed = Math.imul(mixed ^ (mixed >>> 13), 0xc2b2ae35);
  return mixed ^ (mixed >>> 16);
}
