import { decodeValues, encodeValues } from "@coppice/checkpoint";
import { type DType, dtypeBytes, roundToDtype } from "@coppice/core";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { encodeRounded } from "../src/decode.js";

const decode = (dtype: DType, bytes: Uint8Array) => {
  const out = new Float32Array(bytes.length / dtypeBytes[dtype]);
  return { bad: decodeValues(dtype, bytes, out), out };
};

/** Value of a bit pattern by the definition of the format, not by the code under test. */
function patternValue(code: number, exponentBits: number, mantissaBits: number): number {
  const sign = code >>> (exponentBits + mantissaBits) ? -1 : 1;
  const exponent = (code >>> mantissaBits) % 2 ** exponentBits;
  const fraction = (code % 2 ** mantissaBits) / 2 ** mantissaBits;
  const bias = 2 ** (exponentBits - 1) - 1;
  return exponent === 0 ? sign * fraction * 2 ** (1 - bias) : sign * (1 + fraction) * 2 ** (exponent - bias);
}

describe("decodeValues", () => {
  it("widens every bfloat16 and float16 pattern exactly and finds those that are not finite", () => {
    for (const [dtype, exponentBits, mantissaBits] of [
      ["BF16", 8, 7],
      ["F16", 5, 10],
    ] as const) {
      const special = 2 ** exponentBits - 1;
      for (let high = 0; high < 256; high++) {
        const words = Uint16Array.from({ length: 256 }, (_, low) => high * 256 + low);
        const finite = words.filter((word) => (word >>> mantissaBits) % 2 ** exponentBits !== special);
        const good = decode(dtype, new Uint8Array(finite.buffer));
        expect(good.bad).toBe(-1);
        expect(
          finite.every((word, i) => Object.is(good.out[i], patternValue(word, exponentBits, mantissaBits))),
        ).toBe(true);
        const first = words.findIndex((word) => !finite.includes(word));
        expect(decode(dtype, new Uint8Array(words.buffer)).bad).toBe(first);
      }
    }
  });

  it("widens every F8_E4M3 pattern; only 0x7f and 0xff are NaN", () => {
    const codes = Uint8Array.from({ length: 256 }, (_, i) => i);
    const finite = codes.filter((code) => (code & 0x7f) !== 0x7f);
    const { bad, out } = decode("F8_E4M3", finite);
    expect(bad).toBe(-1);
    expect(Math.max(...out)).toBe(448);
    expect(finite.every((code, i) => Object.is(out[i], patternValue(code, 4, 3)))).toBe(true);
    expect(decode("F8_E4M3", codes).bad).toBe(0x7f);
    expect(decode("F8_E4M3", codes.slice(0x80)).bad).toBe(0x7f);
  });

  it("widens every F8_E5M2 and F8_E8M0 pattern", () => {
    const codes = Uint8Array.from({ length: 256 }, (_, i) => i);
    const finite = codes.filter((code) => (code & 0x7c) !== 0x7c);
    const { bad, out } = decode("F8_E5M2", finite);
    expect(bad).toBe(-1);
    expect(finite.every((code, i) => Object.is(out[i], patternValue(code, 5, 2)))).toBe(true);
    expect(decode("F8_E5M2", codes).bad).toBe(0x7c);
    const powers = decode("F8_E8M0", codes);
    expect(powers.bad).toBe(255);
    expect([...powers.out.subarray(0, 255)]).toEqual(Array.from({ length: 255 }, (_, i) => 2 ** (i - 127)));
  });

  it("takes float32 as it is, narrows float64 and finds NaN, infinity and overflow", () => {
    const f32 = Float32Array.of(1.5, -0, 1e-45, 3.4e38);
    expect(decode("F32", new Uint8Array(f32.buffer)).out).toEqual(f32);
    expect(decode("F32", new Uint8Array(Float32Array.of(1, Number.NaN).buffer)).bad).toBe(1);
    const f64 = Float64Array.of(0.1, 1e-300, -2.5);
    expect(decode("F64", new Uint8Array(f64.buffer))).toEqual({ bad: -1, out: Float32Array.from(f64) });
    expect(decode("F64", new Uint8Array(Float64Array.of(0, 0, 1e300).buffer)).bad).toBe(2);
    expect(decode("F64", new Uint8Array(Float64Array.of(Number.NEGATIVE_INFINITY).buffer)).bad).toBe(0);
  });

  it("takes integers that float32 holds and finds the first that it does not", () => {
    const cases: [DType, ArrayBufferView, number[], number][] = [
      ["I8", Int8Array.of(-128, 127), [-128, 127], -1],
      ["U8", Uint8Array.of(0, 255), [0, 255], -1],
      ["BOOL", Uint8Array.of(0, 1), [0, 1], -1],
      ["I16", Int16Array.of(-32768, 32767), [-32768, 32767], -1],
      ["I32", Int32Array.of(-(2 ** 31), 2 ** 24), [-(2 ** 31), 2 ** 24], -1],
      ["I32", Int32Array.of(5, 2 ** 24 + 1), [5, 2 ** 24], 1],
      ["U16", Uint16Array.of(65535), [65535], -1],
      ["U32", Uint32Array.of(0xffffff00, 0xffffffff), [0xffffff00, 2 ** 32], 1],
      ["U64", BigUint64Array.of(2n ** 63n, 2n ** 63n + 1n), [2 ** 63, 2 ** 63], 1],
      ["I64", BigInt64Array.of(-(2n ** 63n), 3n), [-(2 ** 63), 3], -1],
      ["I64", BigInt64Array.of(2n ** 60n + 1n), [2 ** 60], 0],
    ];
    for (const [dtype, view, values, bad] of cases) {
      const result = decode(dtype, new Uint8Array(view.buffer as ArrayBuffer));
      expect([dtype, result.bad, ...result.out]).toEqual([dtype, bad, ...values]);
    }
  });
});

describe("encodeValues", () => {
  const value = fc.oneof(
    fc.float({ noNaN: true, noDefaultInfinity: true }),
    fc.float({ noNaN: true, min: -600, max: 600 }),
    fc.float({ noNaN: true, min: Math.fround(-1e-4), max: Math.fround(1e-4) }),
  );

  for (const dtype of ["F64", "F32", "F16", "BF16", "F8_E4M3"] as const) {
    it(`loses nothing of what roundToDtype has rounded to ${dtype}`, () => {
      fc.assert(
        fc.property(fc.array(value, { maxLength: 20 }), (list) => {
          const values = Float32Array.from(list);
          roundToDtype(values, dtype);
          const bytes = new Uint8Array(values.length * dtypeBytes[dtype]);
          encodeValues(dtype, values, bytes);
          expect(decode(dtype, bytes)).toEqual({ bad: -1, out: values });
        }),
        { numRuns: 2000 },
      );
    });
  }

  it("is one step of encodeRounded", () => {
    const special = fc.constantFrom(3.4e38, -3.4e38, Math.fround(3.3961775292304e38), 3.3895313892515355e38);
    const list = fc.array(fc.oneof({ weight: 20, arbitrary: value }, special), { maxLength: 20 });
    for (const dtype of ["F64", "F32", "F16", "BF16", "F8_E4M3"] as const) {
      fc.assert(
        fc.property(list, (items) => {
          const values = Float32Array.from(items);
          const expected = new Uint8Array(values.length * dtypeBytes[dtype]);
          const rounded = values.slice();
          roundToDtype(rounded, dtype);
          encodeValues(dtype, rounded, expected);
          const bytes = new Uint8Array(expected.length);
          expect(encodeRounded(dtype, values, bytes)).toBe(-1);
          expect(bytes).toEqual(expected);
        }),
        { numRuns: 1000 },
      );
      for (const bad of [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY]) {
        expect(encodeRounded(dtype, Float32Array.of(0, 1, bad), new Uint8Array(24))).toBe(2);
      }
    }
  });

  it("gives back every pattern of the small formats", () => {
    for (const [dtype, words] of [
      ["BF16", Uint16Array.from({ length: 65536 }, (_, i) => i).filter((w) => (w & 0x7f80) !== 0x7f80)],
      ["F16", Uint16Array.from({ length: 65536 }, (_, i) => i).filter((w) => (w & 0x7c00) !== 0x7c00)],
      ["F8_E4M3", Uint8Array.from({ length: 256 }, (_, i) => i).filter((w) => (w & 0x7f) !== 0x7f)],
    ] as const) {
      const bytes = new Uint8Array(words.buffer);
      const again = new Uint8Array(bytes.length);
      encodeValues(dtype, decode(dtype, bytes).out, again);
      expect(again).toEqual(bytes);
    }
  });
});
