import { packBfloat16, packFloats, unpackBfloat16, unpackFloats } from "@coppice/core";
import fc from "fast-check";
import { describe, expect, it } from "vitest";

describe("packFloats", () => {
  it("keeps every bit of finite values", () => {
    fc.assert(
      fc.property(fc.float32Array({ noNaN: true, noDefaultInfinity: true, maxLength: 20 }), (values) => {
        const back = unpackFloats(packFloats(values), { count: values.length });
        expect(new Uint32Array(back.buffer)).toEqual(new Uint32Array(values.slice().buffer));
      }),
    );
    const many = Float32Array.from({ length: 100_000 }, (_, i) => i / 7);
    expect(unpackFloats(packFloats(many))).toEqual(many);
  });

  it("refuses text that is something else", () => {
    const text = packFloats(Float32Array.of(1, 2, 3));
    expect(() => unpackFloats(text, { count: 4, what: "rows" })).toThrow(/rows: 16 characters/);
    expect(() => unpackFloats("****", {})).toThrow(expect.objectContaining({ code: "COPPICE_FORMAT_SHAPE" }));
    expect(() => unpackFloats("AAAAAA é")).toThrow(expect.objectContaining({ code: "COPPICE_FORMAT_SHAPE" }));
    expect(() => unpackFloats("AAA=")).toThrow(expect.objectContaining({ code: "COPPICE_FORMAT_SHAPE" }));
    expect(() => unpackFloats(packFloats(Float32Array.of(0, Number.NaN)))).toThrow(
      expect.objectContaining({
        code: "COPPICE_FORMAT_NAN",
        message: expect.stringMatching(/value 1 is NaN/),
      }),
    );
  });
});

describe("packBfloat16", () => {
  const shape = expect.objectContaining({ code: "COPPICE_FORMAT_SHAPE" });

  it("rounds to the nearest, ties to even, and keeps what bfloat16 holds", () => {
    const steps = (count: number) => 1 + count * 2 ** -7;
    const given = [
      steps(1),
      steps(0.5),
      steps(1.5),
      steps(1.4),
      -steps(2.51),
      3.4e38,
      -0,
      2 ** -133,
      2 ** -135,
    ];
    const wanted = [steps(1), 1, steps(2), steps(1), -steps(3), (2 - 2 ** -7) * 2 ** 127, -0, 2 ** -133, 0];
    const values = Float32Array.from(given);
    expect([...unpackBfloat16(packBfloat16(values))]).toEqual(wanted);
    expect([...values]).toEqual([...Float32Array.from(given)]);
  });

  it("is base64 of the upper halves, little-endian, and any part of it is read alone", () => {
    fc.assert(
      fc.property(
        fc.uint16Array({ maxLength: 40 }),
        fc.nat({ max: 40 }),
        fc.nat({ max: 40 }),
        (codes, one, other) => {
          const finite = codes.map((code) => ((code & 0x7f80) === 0x7f80 ? code & 0x8fff : code));
          const values = new Float32Array(Uint32Array.from(finite, (code) => code * 65536).buffer);
          const text = packBfloat16(values);
          const bytes = [...finite].flatMap((code) => [code & 255, code >> 8]);
          expect(text).toBe(btoa(String.fromCharCode(...bytes)));
          const [from, to] = [
            Math.min(one, other, values.length),
            Math.min(Math.max(one, other), values.length),
          ];
          expect(unpackBfloat16(text, { from, to })).toEqual(values.subarray(from, to));
          expect(unpackBfloat16(text, { count: values.length })).toEqual(values);
        },
      ),
    );
  });

  it("refuses values that are not finite and text that is something else", () => {
    expect(() => packBfloat16(Float32Array.of(0, Number.POSITIVE_INFINITY))).toThrow(/value 1 is Infinity/);
    const text = packBfloat16(Float32Array.of(1, 2, 3));
    expect(() => unpackBfloat16(text, { count: 4, what: "deltas" })).toThrow(
      /deltas: 8 characters .* 4 bfloat16/,
    );
    expect(() => unpackBfloat16(text, { to: 4 })).toThrow(shape);
    for (const bad of ["AA==A", "AAA", "AAA=AAA=", "AAAA AAA", "AAA\u0141", "AAB="]) {
      expect(() => unpackBfloat16(bad), bad).toThrow(shape);
    }
    expect(() => unpackBfloat16(btoa("\0\0\x80\xff"))).toThrow(
      expect.objectContaining({
        code: "COPPICE_FORMAT_NAN",
        message: expect.stringMatching(/value 1 is -Inf/),
      }),
    );
  });
});
