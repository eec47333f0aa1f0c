import { type ErrorCode, isCoppiceError } from "@coppice/core";

/** Fails with `message` when `condition` is false. */
export function expectThat(condition: boolean, message: string): asserts condition {
  if (!condition) throw new Error(message);
}

/** Fails when the two differ in length, hold NaN, or differ by more than `tolerance` anywhere. */
export function expectClose(
  actual: ArrayLike<number> | undefined,
  expected: ArrayLike<number>,
  tolerance: number,
  what: string,
): void {
  if (!actual) throw new Error(`${what}: missing, expected ${expected.length} values`);
  if (actual.length !== expected.length) {
    throw new Error(`${what}: ${actual.length} values, expected ${expected.length}`);
  }
  let worst = 0;
  let at = -1;
  for (let i = 0; i < expected.length; i++) {
    const difference = Math.abs((actual[i] as number) - (expected[i] as number));
    // Written so that NaN counts as a difference.
    if (!(difference <= worst)) {
      worst = difference;
      at = i;
      if (Number.isNaN(difference)) break;
    }
  }
  if (!(worst <= tolerance)) {
    throw new Error(
      `${what}: differ by ${worst} at value ${at} of ${expected.length} ` +
        `(${actual[at]}, expected ${expected[at]}); at most ${tolerance} is allowed`,
    );
  }
}

/** Fails when the two differ anywhere. */
export function expectEqual(
  actual: ArrayLike<number> | undefined,
  expected: ArrayLike<number>,
  what: string,
): void {
  expectClose(actual, expected, 0, what);
}

/** Fails unless `work` rejects with a CoppiceError of one of `codes`. */
export async function expectCode(
  work: () => unknown,
  codes: readonly ErrorCode[],
  what: string,
): Promise<void> {
  const wanted = codes.join(" or ");
  try {
    await work();
  } catch (error) {
    if (codes.some((code) => isCoppiceError(error, code))) return;
    const shown = isCoppiceError(error) ? `${error.code}: ${error.message}` : String(error);
    throw new Error(`${what}: failed with ${shown}; expected ${wanted}`, { cause: error });
  }
  throw new Error(`${what}: did not fail; expected ${wanted}`);
}
