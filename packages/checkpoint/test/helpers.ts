import {
  type CheckpointFolder,
  loadModel,
  memoryFolder,
  memoryTarget,
  parseSafetensors,
  serializeSafetensors,
} from "@coppice/checkpoint";
import { type SyntheticOptions, writeSyntheticCheckpoint } from "@coppice/checkpoint/node";
import { type ErrorCode, isCoppiceError } from "@coppice/core";
import { expect } from "vitest";

export const fixtures = new URL("../../plugin-kit/fixtures/", import.meta.url).pathname;

export type Files = Map<string, Uint8Array>;

export const tiny: SyntheticOptions = {
  family: "mixtral",
  layers: 2,
  hiddenSize: 8,
  vocabSize: 12,
  heads: 2,
  kvHeads: 1,
  experts: 4,
  topK: 2,
  expertWidth: 6,
  seed: 7,
};

const made = new Map<string, Promise<Files>>();

/** The files of a small checkpoint, in memory, free to be damaged. */
export async function tinyFiles(options: Partial<SyntheticOptions> = {}): Promise<Files> {
  const key = JSON.stringify(options);
  const files = made.get(key) ?? makeFiles({ ...tiny, ...options });
  made.set(key, files);
  return new Map([...(await files)].map(([name, bytes]) => [name, bytes.slice()]));
}

async function makeFiles(options: SyntheticOptions): Promise<Files> {
  const target = memoryTarget();
  await writeSyntheticCheckpoint(target, options);
  return new Map(target.files);
}

export const load = (files: Files | CheckpointFolder) =>
  loadModel("list" in files ? files : memoryFolder(files, "the folder"));

export const text = (bytes: Uint8Array | undefined) => new TextDecoder().decode(bytes);
export const bytesOf = (value: string) => new TextEncoder().encode(value);

/** Changes keys of a JSON file; undefined removes one. */
export function editJson(files: Files, name: string, changes: Record<string, unknown>): Files {
  const value = { ...(JSON.parse(text(files.get(name))) as object), ...changes };
  return new Map(files).set(name, bytesOf(JSON.stringify(value)));
}

export const editConfig = (files: Files, changes: Record<string, unknown>) =>
  editJson(files, "config.json", changes);

/** A safetensors file with any header, well-formed or not, and `dataBytes` zero bytes after it. */
export function rawSafetensors(header: unknown, dataBytes: number, claimedLength?: bigint): Uint8Array {
  const json = bytesOf(typeof header === "string" ? header : JSON.stringify(header));
  const file = new Uint8Array(8 + json.length + dataBytes);
  new DataView(file.buffer).setBigUint64(0, claimedLength ?? BigInt(json.length), true);
  file.set(json, 8);
  return file;
}

/** Asserts that `work` throws a CoppiceError of this code whose message holds every one of `parts`. */
export async function expectError(
  work: Promise<unknown> | (() => Promise<unknown> | unknown),
  code: ErrorCode,
  ...parts: (string | RegExp)[]
): Promise<void> {
  let error: unknown;
  try {
    await (typeof work === "function" ? work() : work);
  } catch (caught) {
    error = caught;
  }
  if (!isCoppiceError(error)) throw error ?? new Error(`expected ${code}, but nothing was thrown`);
  expect({ code: error.code, message: error.message }).toEqual({ code, message: error.message });
  for (const part of parts) {
    if (typeof part === "string") expect(error.message).toContain(part);
    else expect(error.message).toMatch(part);
  }
}

/** The tensors of a single-file checkpoint, read without the code that loads models. */
export const tensorsOf = async (files: Files) =>
  new Map((await parseSafetensors(files.get("model.safetensors") as Uint8Array, "model")).tensors);

/** Rewrites the tensors of a single-file checkpoint. */
export async function editTensors(
  files: Files,
  edit: (tensors: Awaited<ReturnType<typeof tensorsOf>>) => void,
): Promise<Files> {
  const tensors = await tensorsOf(files);
  edit(tensors);
  return new Map(files).set("model.safetensors", serializeSafetensors(tensors));
}

/** Overwrites one bf16 value. */
export function poison(files: Files, tensor: string, position: number, word: number): Promise<Files> {
  return editTensors(files, (tensors) => {
    const { bytes } = tensors.get(tensor) as { bytes: Uint8Array };
    new Uint16Array(bytes.buffer)[position] = word;
  });
}
