import { packFloats, unpackFloats } from "@coppice/core";
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
    expect(() => unpackFloats("AAA=")).toThrow(expect.objectContaining({ code: "COPPICE_FORMAT_SHAPE" }));
    expect(() => unpackFloats(packFloats(Float32Array.of(0, Number.NaN)))).toThrow(
      expect.objectContaining({
        code: "COPPICE_FORMAT_NAN",
        message: expect.stringMatching(/value 1 is NaN/),
      }),
    );
  });
});
