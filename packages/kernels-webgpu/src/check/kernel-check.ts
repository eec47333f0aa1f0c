import { CoppiceError, Rng } from "@coppice/core";
import type { Gpu } from "../gpu.js";
import type { GpuBuffer } from "../gpu-buffer.js";

/** A small run of a kernel against a formula in float64. */
export interface KernelCheck {
  /** Name of the kernel, for messages. */
  readonly kernel: string;
  /** Equal for checks that would run the same code on the same values. */
  readonly key: string;
  /** Largest difference that is no error. */
  readonly tolerance: number;
  /** @returns the largest difference */
  run(gpu: Gpu): Promise<number>;
}

/** What computes the same as a formula: our kernel, or another implementation in its place. */
export interface Implementation<Call> {
  readonly name: string;
  /** @param own where to get memory for it */
  run(gpu: Gpu, call: Call, own: CheckBuffers): void | Promise<void>;
}

const passed = new WeakMap<Gpu, Set<string>>();

/**
 * Runs checks that this device has not passed yet.
 * @throws COPPICE_BACKEND_UNAVAILABLE when the device computes something wrong: the name of the kernel and both numbers
 */
export async function selfCheck(gpu: Gpu, checks: readonly KernelCheck[]): Promise<void> {
  const done = passed.get(gpu) ?? new Set();
  passed.set(gpu, done);
  for (const { kernel, key, tolerance, run } of checks) {
    if (done.has(key)) continue;
    const worst = await run(gpu);
    // Written so that NaN counts as a difference.
    if (!(worst <= tolerance)) {
      throw new CoppiceError(
        "COPPICE_BACKEND_UNAVAILABLE",
        `the device computes wrong results in the kernel "${kernel}" (${key}): they differ by ${worst}, ` +
          `at most ${tolerance} is allowed`,
        {
          hint: "use another device or another driver, or the cpu backend",
          details: { kernel, key, worst, tolerance },
        },
      );
    }
    done.add(key);
  }
}

/** Values between -1 and 1, the same for the same seed. */
export function randomValues(count: number, seed: number): Float32Array {
  const rng = Rng.fromSeed(seed);
  return Float32Array.from({ length: count }, () => 2 * rng.uniform() - 1);
}

/** Largest difference, NaN where one of the values is. */
export function worstDifference(found: ArrayLike<number>, expected: ArrayLike<number>): number {
  let worst = found.length === expected.length ? 0 : Number.NaN;
  for (let i = 0; i < expected.length; i++) {
    const difference = Math.abs((found[i] as number) - (expected[i] as number));
    if (!(difference <= worst)) worst = difference;
  }
  return worst;
}

/** Makes buffers of one check. */
export interface CheckBuffers {
  upload(values: Float32Array | Uint32Array | Int32Array): GpuBuffer;
  empty(words: number): GpuBuffer;
}

/** Buffers of one check, disposed together. */
export async function withBuffers<T>(gpu: Gpu, work: (own: CheckBuffers) => Promise<T>): Promise<T> {
  const made: GpuBuffer[] = [];
  const keep = (buffer: GpuBuffer) => {
    made.push(buffer);
    return buffer;
  };
  try {
    return await work({
      upload: (values) => keep(gpu.upload(values, "a check")),
      empty: (words) => keep(gpu.buffer(4 * words, "a check")),
    });
  } finally {
    for (const buffer of made) buffer.dispose();
  }
}
