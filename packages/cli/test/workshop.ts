import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type FixtureName, fixturePath } from "@coppice/plugin-kit/node";
import { afterAll } from "vitest";

/** A temporary folder that is removed after the tests of a file. */
export function workshop(): string {
  const folder = mkdtempSync(join(tmpdir(), "coppice-cli-"));
  afterAll(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

/** Copies a fixture and gives it a tokenizer of 256 bytes, so that it can read tasks. */
export function copyModel(folder: string, name: FixtureName = "mixtral"): string {
  cpSync(fixturePath(name), folder, { recursive: true });
  rmSync(join(folder, "golden.safetensors"));
  writeFileSync(join(folder, "tokenizer.json"), JSON.stringify(byteTokenizer()));
  return folder;
}

/** Byte-level BPE without merges: one token per byte, in the order of the GPT-2 alphabet. */
function byteTokenizer() {
  const printable = (byte: number) =>
    (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || (byte >= 174 && byte <= 255);
  let next = 256;
  const vocab: Record<string, number> = {};
  for (let byte = 0; byte < 256; byte++) vocab[String.fromCharCode(printable(byte) ? byte : next++)] = byte;
  const byteLevel = { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true };
  return {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: [],
    normalizer: null,
    pre_tokenizer: byteLevel,
    post_processor: null,
    decoder: byteLevel,
    model: { type: "BPE", vocab, merges: [] },
  };
}

/** A task file of `count` different little sums. */
export function writeTask(path: string, count: number, offset = 0): string {
  const lines = Array.from({ length: count }, (_, i) =>
    JSON.stringify({ prompt: `${i + offset} + ${i} =`, answer: ` ${2 * i + offset}` }),
  );
  writeFileSync(path, `${lines.join("\n")}\n`);
  return path;
}

/** The header of a safetensors file as JSON, and its data. */
export function readSafetensors(path: string): { header: Record<string, TensorEntry>; data: Buffer } {
  const bytes = readFileSync(path);
  const length = Number(bytes.readBigUInt64LE(0));
  return { header: JSON.parse(bytes.toString("utf8", 8, 8 + length)), data: bytes.subarray(8 + length) };
}

export interface TensorEntry {
  dtype: string;
  shape: number[];
  data_offsets: [number, number];
}

export function writeSafetensors(path: string, header: object, data: Uint8Array, claimed?: bigint): void {
  const text = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(claimed ?? BigInt(text.length));
  writeFileSync(path, Buffer.concat([length, text, data]));
}
