/** Largest difference of two arrays of equal length. */
export function maxDifference(a: Float32Array | undefined, b: Float32Array | undefined): number {
  if (!a || !b || a.length !== b.length) throw new Error(`arrays of ${a?.length} and ${b?.length} values`);
  let worst = 0;
  for (let i = 0; i < a.length; i++) {
    const difference = Math.abs((a[i] as number) - (b[i] as number));
    // NaN must not pass.
    if (!(difference <= worst)) worst = difference;
  }
  return worst;
}
