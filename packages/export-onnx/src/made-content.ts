import type { Content } from "@coppice/checkpoint";

/** Bytes that are made as a whole when the first of them is written, and let go after the last. */
export function madeContent(
  bytes: number,
  make: (signal: AbortSignal | undefined) => Promise<Uint8Array>,
): Content {
  let made: Promise<Uint8Array> | undefined;
  return {
    bytes,
    async fill(offset, into, signal) {
      made ??= make(signal);
      into.set((await made).subarray(offset, offset + into.length));
      if (offset + into.length === bytes) made = undefined;
    },
  };
}

/** Makes something when it is first asked for and lets it go once it was asked for `uses` times. */
export function madeFor<T>(
  uses: number,
  make: (signal: AbortSignal | undefined) => Promise<T>,
): (signal: AbortSignal | undefined) => Promise<T> {
  let made: Promise<T> | undefined;
  let left = uses;
  return (signal) => {
    made ??= make(signal);
    const value = made;
    if (--left === 0) made = undefined;
    return value;
  };
}
