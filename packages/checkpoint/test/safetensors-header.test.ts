import { defaultLimits, memoryFolder, readSafetensorsHeader } from "@coppice/checkpoint";
import type { ErrorCode } from "@coppice/core";
import { describe, expect, it } from "vitest";
import { expectError, rawSafetensors } from "./helpers.js";

const read = async (bytes: Uint8Array, limits = defaultLimits) =>
  readSafetensorsHeader(await memoryFolder({ f: bytes }).open("f"), "f.safetensors", { limits });

const tensor = (dtype: unknown, shape: unknown, ...offsets: unknown[]) => ({
  dtype,
  shape,
  data_offsets: offsets,
});

describe("readSafetensorsHeader", () => {
  it("reads tensors in the order of their bytes, with absolute offsets, and the metadata", async () => {
    const header = {
      __metadata__: { format: "pt", __proto__x: "1" },
      b: tensor("F32", [2], 2, 10),
      empty: tensor("F32", [0, 3], 2, 2),
      a: tensor("I8", [2], 0, 2),
      scalar: tensor("F16", [], 10, 12),
    };
    const bytes = rawSafetensors(header, 12);
    const start = bytes.length - 12;
    const { tensors, metadata } = await read(bytes);
    expect(tensors.map(({ name, begin, end }) => [name, begin - start, end - start])).toEqual([
      ["a", 0, 2],
      ["empty", 2, 2],
      ["b", 2, 10],
      ["scalar", 10, 12],
    ]);
    expect(tensors[2]).toEqual({
      name: "b",
      dtype: "F32",
      shape: [2],
      file: "f.safetensors",
      begin: start + 2,
      end: start + 10,
    });
    expect([...metadata]).toEqual([
      ["format", "pt"],
      ["__proto__x", "1"],
    ]);
  });

  it("reads a file without tensors and a header padded with spaces", async () => {
    expect((await read(rawSafetensors("{}      ", 0))).tensors).toEqual([]);
  });

  it("takes __proto__ and constructor as names like any other", async () => {
    const header =
      '{"__proto__":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},' +
      '"constructor":{"dtype":"U8","shape":[1],"data_offsets":[1,2]},' +
      '"__metadata__":{"__proto__":"x"}}';
    const { tensors, metadata } = await read(rawSafetensors(header, 2));
    expect(tensors.map(({ name }) => name)).toEqual(["__proto__", "constructor"]);
    expect(metadata.get("__proto__")).toBe("x");
    expect(({} as Record<string, unknown>)["dtype"]).toBeUndefined();
    expect(Object.getPrototypeOf({})).toBe(Object.prototype);
  });

  const ok = tensor("F32", [2], 0, 8);
  const hostile: [string, Uint8Array, ErrorCode, ...(string | RegExp)[]][] = [
    ["an empty file", new Uint8Array(0), "COPPICE_FORMAT_TRUNCATED", "0 bytes", "8"],
    ["half a length field", new Uint8Array(5), "COPPICE_FORMAT_TRUNCATED", "5 bytes"],
    ["a length beyond the file", rawSafetensors({}, 4, 5000n), "COPPICE_FORMAT_HEADER", "5000", "only 14"],
    [
      "a length beyond the limit",
      rawSafetensors({}, 0, 2n ** 63n),
      "COPPICE_FORMAT_LIMIT",
      "9223372036854775808",
    ],
    ["a length of 0", rawSafetensors("", 0), "COPPICE_FORMAT_HEADER", "JSON"],
    ["no JSON", rawSafetensors("{nonsense", 0), "COPPICE_FORMAT_HEADER", "JSON"],
    ["an array", rawSafetensors([], 0), "COPPICE_FORMAT_HEADER", "[]"],
    ["leading space", rawSafetensors(" {}", 0), "COPPICE_FORMAT_HEADER", "begin with {"],
    ["no UTF-8", rawSafetensors("{}", 1, 3n).with(10, 0xff), "COPPICE_FORMAT_HEADER"],
    [
      "a tensor twice",
      rawSafetensors(`{"a":${JSON.stringify(ok)},"a":${JSON.stringify(ok)}}`, 8),
      "COPPICE_FORMAT_HEADER",
      "twice",
    ],
    [
      "a field twice, behind quotes and braces in names",
      rawSafetensors('{"\\"}:{":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}', 1),
      "COPPICE_FORMAT_HEADER",
      "twice",
    ],
    ["a tensor that is a number", rawSafetensors({ a: 5 }, 0), "COPPICE_FORMAT_HEADER", '"a"', "5"],
    ["an unknown field", rawSafetensors({ a: { ...ok, x: 1 } }, 8), "COPPICE_FORMAT_HEADER", '"x"'],
    [
      "an unknown dtype",
      rawSafetensors({ a: tensor("F4", [2], 0, 8) }, 8),
      "COPPICE_FORMAT_DTYPE",
      "F4",
      "BF16",
    ],
    ["a dtype of Object", rawSafetensors({ a: tensor("toString", [2], 0, 8) }, 8), "COPPICE_FORMAT_DTYPE"],
    ["no dtype", rawSafetensors({ a: { shape: [2], data_offsets: [0, 8] } }, 8), "COPPICE_FORMAT_DTYPE"],
    ["no shape", rawSafetensors({ a: { dtype: "F32", data_offsets: [0, 8] } }, 8), "COPPICE_FORMAT_HEADER"],
    ["a negative size", rawSafetensors({ a: tensor("F32", [-2], 0, 8) }, 8), "COPPICE_FORMAT_HEADER", "-2"],
    [
      "a fractional size",
      rawSafetensors({ a: tensor("F32", [2.5], 0, 8) }, 8),
      "COPPICE_FORMAT_HEADER",
      "2.5",
    ],
    ["a size of text", rawSafetensors({ a: tensor("F32", ["2"], 0, 8) }, 8), "COPPICE_FORMAT_HEADER"],
    ["an unsafe size", rawSafetensors({ a: tensor("F32", [2 ** 53], 0, 8) }, 8), "COPPICE_FORMAT_HEADER"],
    [
      "sizes whose product is beyond 2**53",
      rawSafetensors({ a: tensor("F32", [2 ** 40, 2 ** 40], 0, 8) }, 8),
      "COPPICE_FORMAT_SHAPE",
      "8 bytes",
    ],
    [
      "too few bytes for the shape",
      rawSafetensors({ a: tensor("F32", [3], 0, 8) }, 8),
      "COPPICE_FORMAT_SHAPE",
      "12",
      "8",
    ],
    ["no offsets", rawSafetensors({ a: { dtype: "F32", shape: [2] } }, 8), "COPPICE_FORMAT_HEADER"],
    ["three offsets", rawSafetensors({ a: tensor("F32", [2], 0, 8, 9) }, 8), "COPPICE_FORMAT_HEADER"],
    ["fractional offsets", rawSafetensors({ a: tensor("F32", [2], 0.5, 8.5) }, 8), "COPPICE_FORMAT_HEADER"],
    ["negative offsets", rawSafetensors({ a: tensor("F32", [2], -8, 0) }, 8), "COPPICE_FORMAT_OFFSETS", "-8"],
    ["reversed offsets", rawSafetensors({ a: tensor("F32", [2], 8, 0) }, 8), "COPPICE_FORMAT_OFFSETS"],
    ["a tensor beyond the file", rawSafetensors({ a: ok }, 7), "COPPICE_FORMAT_TRUNCATED", '"a"', "bytes"],
    [
      "overlapping tensors",
      rawSafetensors({ a: ok, b: tensor("F32", [2], 4, 12) }, 12),
      "COPPICE_FORMAT_OFFSETS",
      '"a" and "b" overlap',
    ],
    ["two tensors at one place", rawSafetensors({ a: ok, b: ok }, 8), "COPPICE_FORMAT_OFFSETS", "overlap"],
    ["a hole", rawSafetensors({ a: ok, b: tensor("F32", [1], 12, 16) }, 16), "COPPICE_FORMAT_OFFSETS", '"b"'],
    ["a hole at the start", rawSafetensors({ a: tensor("F32", [2], 4, 12) }, 12), "COPPICE_FORMAT_OFFSETS"],
    ["bytes after the last tensor", rawSafetensors({ a: ok }, 9), "COPPICE_FORMAT_OFFSETS", "at the end"],
    ["metadata that is an array", rawSafetensors({ __metadata__: [] }, 0), "COPPICE_FORMAT_HEADER"],
    ["metadata with numbers", rawSafetensors({ __metadata__: { a: 1 } }, 0), "COPPICE_FORMAT_HEADER", '"a"'],
    [
      "too many dimensions",
      rawSafetensors({ a: tensor("U8", new Array(17).fill(1), 0, 1) }, 1),
      "COPPICE_FORMAT_LIMIT",
      "17 dimensions",
    ],
    [
      "a long name",
      rawSafetensors({ ["x".repeat(5000)]: tensor("U8", [1], 0, 1) }, 1),
      "COPPICE_FORMAT_LIMIT",
    ],
    [
      "deep nesting",
      rawSafetensors(`{"a":${"[".repeat(50_000)}${"]".repeat(50_000)}}`, 0),
      "COPPICE_FORMAT_HEADER",
    ],
    [
      "a deep shape",
      rawSafetensors(`{"a":{"dtype":"U8","shape":[${"[".repeat(50_000)}${"]".repeat(50_000)}]}}`, 0),
      "COPPICE_FORMAT_HEADER",
    ],
  ];
  for (const [name, bytes, code, ...parts] of hostile) {
    it(`refuses ${name}`, () => expectError(read(bytes), code, ...parts));
  }

  it("keeps to the limits it is given", async () => {
    const two = rawSafetensors({ a: tensor("U8", [1], 0, 1), b: tensor("U8", [1], 1, 2) }, 2);
    await expectError(read(two, { ...defaultLimits, tensors: 1 }), "COPPICE_FORMAT_LIMIT", "1 tensors");
    await expectError(read(two, { ...defaultLimits, headerBytes: 20 }), "COPPICE_FORMAT_LIMIT", "20");
    const metadata = rawSafetensors({ __metadata__: { a: "xxx", b: "y" } }, 0);
    await expectError(read(metadata, { ...defaultLimits, metadataEntries: 1 }), "COPPICE_FORMAT_LIMIT");
    await expectError(read(metadata, { ...defaultLimits, metadataLength: 5 }), "COPPICE_FORMAT_LIMIT");
  });
});
