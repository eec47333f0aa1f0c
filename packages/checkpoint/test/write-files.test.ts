import { memoryFolder } from "@coppice/checkpoint";
import { mergeRows, Rng, roundToDtype, type TensorRef } from "@coppice/core";
import { describe, expect, it } from "vitest";
import { MergeScratch, mergeContent } from "../src/output/content.js";
import type { CheckpointTarget } from "../src/output/target.js";
import { outputFile, writeFiles } from "../src/output/write-files.js";
import { SourceCache } from "../src/source-cache.js";
import { expectError } from "./helpers.js";

/** A byte for every position, without a period that buffers share. */
const pattern = (position: number) => (position * 31 + Math.floor(position / 251)) % 256;

const patternContent = (start: number, bytes: number) => ({
  bytes,
  fill: async (offset: number, into: Uint8Array) => {
    for (let i = 0; i < into.length; i++) into[i] = pattern(start + offset + i);
  },
});

/** A target that copies what it is given only after a while, as a disk does. */
function slowTarget(fail?: number): {
  target: CheckpointTarget;
  files: Map<string, Uint8Array>;
  log: string[];
} {
  const files = new Map<string, Uint8Array>();
  const log: string[] = [];
  let writes = 0;
  const target: CheckpointTarget = {
    label: "slow",
    begin: async () => ({
      create: async (name, bytes) => {
        const content = new Uint8Array(bytes);
        let busy = false;
        return {
          write: async (offset, part) => {
            if (busy) throw new Error("two writes at once");
            busy = true;
            const count = writes++;
            await new Promise((resolve) => setTimeout(resolve, 30));
            busy = false;
            if (count === fail) throw new Error("the disk is gone");
            content.set(part, offset);
          },
          close: async () => {
            if (busy) throw new Error("closed during a write");
            log.push("close");
            files.set(name, content);
          },
        };
      },
      commit: async () => void log.push("commit"),
      rollback: async () => void log.push("rollback"),
    }),
  };
  return { target, files, log };
}

describe("writeFiles", () => {
  const big = 20_000_003;
  const files = [
    outputFile("big", [
      patternContent(0, 1000),
      patternContent(1000, big - 2000),
      patternContent(big - 1000, 1000),
    ]),
    outputFile("empty", []),
    outputFile("small", [patternContent(0, 10)]),
  ];

  it("writes files of many buffers to a slow target", async () => {
    const { target, files: written, log } = slowTarget();
    await writeFiles(files, target);
    const content = written.get("big") as Uint8Array;
    expect(content).toHaveLength(big);
    expect(content.findIndex((byte, i) => byte !== pattern(i))).toBe(-1);
    expect(written.get("empty")).toHaveLength(0);
    expect(written.get("small")).toHaveLength(10);
    expect(log).toEqual(["close", "close", "close", "commit"]);
  });

  it("waits for the write under way before it gives up", async () => {
    const lastWrite = slowTarget(2);
    await expect(writeFiles(files, lastWrite.target)).rejects.toThrow("the disk is gone");
    expect(lastWrite.log).toEqual(["close", "rollback"]);
    const { target, log } = slowTarget();
    let filled = 0;
    const broken = {
      bytes: big,
      fill: async () => {
        if (++filled === 2) throw new Error("the source is gone");
      },
    };
    await expect(writeFiles([outputFile("big", [broken])], target)).rejects.toThrow("the source is gone");
    expect(log).toEqual(["close", "rollback"]);
  });

  it("does not begin when it is aborted already", async () => {
    const { target, log } = slowTarget();
    await expectError(writeFiles(files, target, { signal: AbortSignal.abort() }), "COPPICE_ABORTED", "slow");
    expect(log).toEqual([]);
  });
});

describe("mergeContent", () => {
  it("gives the same bytes in pieces of any size", async () => {
    const rng = Rng.fromSeed(3);
    // So many sources that a merge holds only a part of each at once.
    const count = 600;
    const length = 5001;
    const sources = Array.from({ length: count }, () => Float32Array.from({ length }, () => rng.normal()));
    const coefficients = sources.map(() => rng.normal());
    const folder = memoryFolder(
      new Map(sources.map((values, i) => [`f${i}`, new Uint8Array(values.buffer)] as const)),
    );
    const refs = sources.map(
      (_, i): TensorRef => ({
        name: `t${i}`,
        dtype: "F32",
        shape: [length],
        file: `f${i}`,
        begin: 0,
        end: length * 4,
      }),
    );
    const expected = new Float32Array(length);
    mergeRows(sources, coefficients, expected);
    roundToDtype(expected, "BF16");
    const words = new Uint16Array(new Uint32Array(expected.buffer).map((word) => word >>> 16));
    const stored = { dtype: "BF16", shape: [length] } as const;
    const content = mergeContent(
      new SourceCache(folder),
      new MergeScratch(),
      refs,
      coefficients,
      stored,
      "merged",
    );
    expect(content.bytes).toBe(length * 2);
    for (const piece of [length, 4999, 1000]) {
      const bytes = new Uint8Array(length * 2);
      for (let at = 0; at < length; at += piece) {
        await content.fill(at * 2, bytes.subarray(at * 2, Math.min(at + piece, length) * 2), undefined);
      }
      expect(new Uint16Array(bytes.buffer)).toEqual(words);
    }
  });
});
