import { mergeRows, onlyExpert, Rng } from "@coppice/core";
import { describe, expect, it } from "vitest";

/** The documented rounding, element by element: eight products in float64, then seven more each time. */
function slowMerge(sources: Float32Array[], coefficients: number[], index: number): number {
  const terms = sources.flatMap((source, j) =>
    coefficients[j] === 0 ? [] : [(coefficients[j] as number) * (source[index] as number)],
  );
  let value = 0;
  terms.forEach((term, i) => {
    value += term;
    if (i >= 7 && i % 7 === 0) value = Math.fround(value);
  });
  return Math.fround(value);
}

describe("mergeRows", () => {
  for (const count of [1, 2, 3, 4, 5, 6, 7, 8, 9, 14, 15, 16, 40]) {
    it(`merges ${count} sources with the documented rounding`, () => {
      const rng = Rng.fromSeed(count);
      const sources = Array.from({ length: count }, () =>
        Float32Array.from({ length: 257 }, () => rng.normal()),
      );
      const coefficients = sources.map(() => rng.normal());
      const out = new Float32Array(257).fill(99);
      mergeRows(sources, coefficients, out);
      for (let i = 0; i < out.length; i++) {
        expect(out[i]).toBe(slowMerge(sources, coefficients, i));
        const exact = sources.reduce((sum, s, j) => sum + (s[i] as number) * (coefficients[j] as number), 0);
        expect(Math.abs((out[i] as number) - exact)).toBeLessThan(1e-5);
      }
      // Zero coefficients in between change no bit, and their sources are not read.
      const sparse = new Float32Array(257);
      mergeRows(
        sources.flatMap((source) => [new Float32Array(0), source]),
        coefficients.flatMap((value) => [0, value]),
        sparse,
      );
      expect(sparse).toEqual(out);
    });
  }

  it("copies a single source bit by bit", () => {
    const source = Float32Array.of(1.5, -0, 1e-45, 3.4e38, Math.fround(0.1));
    const out = new Float32Array(5);
    mergeRows([source], [1], out);
    expect(new Uint32Array(out.buffer)).toEqual(new Uint32Array(source.buffer));
  });

  it("gives zeros when all coefficients are zero and refuses lengths that differ", () => {
    const out = Float32Array.of(1, 2);
    mergeRows([Float32Array.of(3, 4)], [0], out);
    expect([...out]).toEqual([0, 0]);
    expect(() => mergeRows([Float32Array.of(1)], [1], out)).toThrow(/1 values.*2/);
  });
});

describe("onlyExpert", () => {
  it("names the expert of rows with one coefficient of 1, and no other row's", () => {
    expect(onlyExpert([0, 0, 1])).toBe(2);
    expect(onlyExpert([1])).toBe(0);
    for (const row of [[0, 0], [], [0, 0.5], [1, 0, 1], [1, -1], [Number.NaN, 0]])
      expect(onlyExpert(row)).toBeUndefined();
  });
});
