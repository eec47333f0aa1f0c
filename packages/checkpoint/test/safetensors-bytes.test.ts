import { loadModel, memoryFolder, parseSafetensors, serializeSafetensors } from "@coppice/checkpoint";
import { type DType, dtypeBytes, elementCount, isCoppiceError } from "@coppice/core";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { expectError, tinyFiles } from "./helpers.js";

const dtypes = Object.keys(dtypeBytes) as DType[];

const tensorMap = fc
  .array(
    fc.record({
      name: fc.oneof(fc.string(), fc.constantFrom("__proto__", "constructor", 'quo"te', "ü\u{1f600}\n")),
      dtype: fc.constantFrom(...dtypes),
      shape: fc.array(fc.integer({ min: 0, max: 4 }), { maxLength: 4 }),
      fill: fc.integer({ min: 0, max: 255 }),
    }),
    { maxLength: 8 },
  )
  .map(
    (items) =>
      new Map(
        items
          .filter(({ name }) => name !== "__metadata__")
          .map(({ name, dtype, shape, fill }) => {
            const bytes = new Uint8Array(elementCount(shape) * dtypeBytes[dtype]).map((_, i) => fill + i * 7);
            return [name, { dtype, shape, bytes }] as const;
          }),
      ),
  );

describe("serializeSafetensors and parseSafetensors", () => {
  it("are inverse for every dtype, shape and name", async () => {
    await fc.assert(
      fc.asyncProperty(tensorMap, fc.dictionary(fc.string(), fc.string()), async (tensors, metadata) => {
        const pairs = new Map(Object.entries(metadata));
        const file = serializeSafetensors(tensors, pairs);
        const content = await parseSafetensors(file, "f");
        expect(new Map([...content.tensors].sort())).toEqual(new Map([...tensors].sort()));
        expect(content.metadata).toEqual(pairs);
        // What follows the header is aligned, and so is every tensor to its own element size.
        let at = 8 + Number(new DataView(file.buffer).getBigUint64(0, true));
        expect(at % 8).toBe(0);
        for (const { dtype, bytes } of content.tensors.values()) {
          expect(at % dtypeBytes[dtype]).toBe(0);
          at += bytes.length;
        }
        expect(at).toBe(file.length);
      }),
      { numRuns: 1000 },
    );
  });

  it("refuse a tensor of the wrong size and the reserved name", async () => {
    const bytes = new Uint8Array(3);
    await expectError(
      () => serializeSafetensors(new Map([["a", { dtype: "U8", shape: [4], bytes }]])),
      "COPPICE_FORMAT_SHAPE",
      "3 bytes",
      "4",
    );
    await expectError(
      () => serializeSafetensors(new Map([["__metadata__", { dtype: "U8", shape: [3], bytes }]])),
      "COPPICE_FORMAT_HEADER",
    );
  });
});

describe("damaged files", () => {
  const damage = (bytes: Uint8Array, edits: readonly [number, number, number][]): Uint8Array => {
    let result = [...bytes];
    for (const [kind, place, value] of edits) {
      // Most edits go where they matter, into the header.
      const at = Math.floor((place / 2 ** 16) * Math.min(result.length, kind < 6 ? 1200 : result.length));
      if (kind % 4 === 0) result[at] = value;
      else if (kind % 4 === 1) result.splice(at, 1 + (value % 9));
      else if (kind % 4 === 2) result.splice(at, 0, value, value ^ 0x5a);
      else if (kind < 8) result[at] = (result[at] ?? 0) ^ (1 << (value % 8));
      else result = result.slice(0, at);
    }
    return Uint8Array.from(result);
  };

  it("give nothing but a CoppiceError, whatever byte of whichever file is changed", async () => {
    const files = await tinyFiles({ layers: 1, experts: 2, maxShardBytes: 800 });
    const names = [...files.keys()];
    const edit = fc.tuple(fc.nat(9), fc.nat(2 ** 16 - 1), fc.nat(255));
    let loaded = 0;
    let refused = 0;
    await fc.assert(
      fc.asyncProperty(
        fc.constantFrom(...names),
        fc.array(edit, { minLength: 1, maxLength: 4 }),
        async (name, edits) => {
          const damaged = new Map(files).set(name, damage(files.get(name) as Uint8Array, edits));
          try {
            const checkpoint = await loadModel(memoryFolder(damaged));
            loaded++;
            for (const ref of checkpoint.tensors.values()) await checkpoint.weights.read(ref);
          } catch (error) {
            if (!isCoppiceError(error) || error.code === "COPPICE_INTERNAL") throw error;
            refused++;
          }
        },
      ),
      { numRuns: 4000 },
    );
    expect(loaded).toBeGreaterThan(100);
    expect(refused).toBeGreaterThan(1000);
  });
});
