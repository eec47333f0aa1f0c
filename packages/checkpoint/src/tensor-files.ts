import { CoppiceError, type TensorRef, throwIfAborted } from "@coppice/core";
import { type CheckpointFolder, checkFileName, missingFile, readSmallFile } from "./folder.js";
import { ownValue, parseJsonObject, showValue } from "./json-object.js";
import type { FormatLimits } from "./limits.js";
import { readSafetensorsHeader } from "./safetensors-header.js";
import type { SourceCache } from "./source-cache.js";

export const singleFileName = "model.safetensors";
export const indexFileName = "model.safetensors.index.json";
/** Formats that run code when they are loaded. */
const pickleFile = /\.(bin|pt|pth|ckpt|pkl|pickle)$/i;

/** The weight files of a checkpoint and the tensors in them. */
export interface TensorFiles {
  /** In the order of their names. */
  readonly shards: readonly { readonly name: string; readonly size: number }[];
  readonly tensors: ReadonlyMap<string, TensorRef>;
  /** Files that end before their tensors do: only their headers are there. */
  readonly incomplete: readonly string[];
}

export interface TensorFilesOptions {
  readonly limits: FormatLimits;
  /** Weight files may end after their headers. */
  readonly headersOnly?: boolean;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Finds a checkpoint's weight files and reads their headers: `model.safetensors`, else the files that
 * `model.safetensors.index.json` names (the order of the Hugging Face loaders). Sizes that the index states are
 * not compared: published indexes often count tied tensors twice.
 * @throws COPPICE_FORMAT_PICKLE, COPPICE_FORMAT_MISSING_FILE, COPPICE_FORMAT_INDEX, COPPICE_FORMAT_PATH and those
 * of `readSafetensorsHeader`
 */
export async function openTensorFiles(
  folder: CheckpointFolder,
  sources: SourceCache,
  options: TensorFilesOptions,
): Promise<TensorFiles> {
  const { limits, signal } = options;
  const sizes = new Map((await folder.list()).map(({ name, size }) => [name, size]));
  if (sizes.has(singleFileName)) {
    return readHeaders([singleFileName], undefined, sizes, folder, sources, options);
  }
  if (!sizes.has(indexFileName)) throw noWeights([...sizes.keys()], folder);
  const bytes = await readSmallFile(folder, indexFileName, limits.indexBytes, signal);
  const index = parseIndex(bytes, limits);
  const names = [...new Set(index.values())].sort();
  if (names.length > limits.shards) {
    throw new CoppiceError(
      "COPPICE_FORMAT_LIMIT",
      `${indexFileName} names ${names.length} files, at most ${limits.shards} are read`,
      { details: { files: names.length, limit: limits.shards } },
    );
  }
  for (const name of names) checkFileName(name, indexFileName);
  return readHeaders(names, index, sizes, folder, sources, options);
}

async function readHeaders(
  names: readonly string[],
  index: ReadonlyMap<string, string> | undefined,
  sizes: ReadonlyMap<string, number>,
  folder: CheckpointFolder,
  sources: SourceCache,
  { limits, headersOnly = false, signal }: TensorFilesOptions,
): Promise<TensorFiles> {
  const missing = names.filter((name) => !sizes.has(name));
  if (missing.length > 0) {
    const [first] = missing as [string];
    if (missing.length === 1) throw missingFile(first, folder.label);
    throw missingFile(
      `${first} (with ${missing.length - 1} of the other ${names.length - 1} shards)`,
      folder.label,
    );
  }
  const tensors = new Map<string, TensorRef>();
  const incomplete: string[] = [];
  for (const name of names) {
    throwIfAborted(signal, `reading the header of ${name}`);
    const header = await sources.use(name, (source) =>
      readSafetensorsHeader(source, name, { limits, headersOnly, ...(signal ? { signal } : {}) }),
    );
    if (!header.complete) incomplete.push(name);
    for (const tensor of header.tensors) {
      const other = tensors.get(tensor.name);
      if (other) throw badIndex(`tensor ${showValue(tensor.name)} is in ${other.file} and again in ${name}`);
      const stated = index?.get(tensor.name);
      if (index && stated !== name) {
        throw badIndex(
          `tensor ${showValue(tensor.name)} is in ${name}, the index ${stated === undefined ? "does not list it" : `says ${stated}`}`,
        );
      }
      tensors.set(tensor.name, tensor);
      if (tensors.size > limits.tensors) {
        throw new CoppiceError(
          "COPPICE_FORMAT_LIMIT",
          `${folder.label} holds more than ${limits.tensors} tensors, the most that are read`,
        );
      }
    }
  }
  for (const [tensor, file] of index ?? []) {
    if (!tensors.has(tensor)) throw badIndex(`tensor ${showValue(tensor)} should be in ${file} and is not`);
  }
  const shards = names.map((name) => ({ name, size: sizes.get(name) as number }));
  return { shards, tensors, incomplete };
}

function parseIndex(bytes: Uint8Array, limits: FormatLimits): ReadonlyMap<string, string> {
  const parsed = parseJsonObject(bytes, indexFileName, "COPPICE_FORMAT_INDEX");
  const weightMap = ownValue(parsed, "weight_map");
  if (typeof weightMap !== "object" || weightMap === null || Array.isArray(weightMap)) {
    throw badIndex(`weight_map is ${showValue(weightMap)}, expected an object of tensor names and files`);
  }
  const entries = Object.entries(weightMap);
  if (entries.length > limits.tensors) {
    throw new CoppiceError(
      "COPPICE_FORMAT_LIMIT",
      `${indexFileName} lists ${entries.length} tensors, at most ${limits.tensors} are read`,
    );
  }
  for (const [tensor, file] of entries) {
    if (typeof file !== "string") {
      throw badIndex(`weight_map has ${showValue(file)} for ${showValue(tensor)}, expected a file name`);
    }
  }
  return new Map(entries as [string, string][]);
}

function noWeights(names: readonly string[], folder: CheckpointFolder): CoppiceError {
  const pickles = names.filter((name) => pickleFile.test(name));
  const weights = names.filter((name) => name.endsWith(".safetensors"));
  if (pickles.length > 0 && weights.length === 0) {
    return new CoppiceError(
      "COPPICE_FORMAT_PICKLE",
      `${folder.label} holds no safetensors file, only pickle files such as ${pickles[0]}, which can run code and are never read`,
      {
        hint: "convert it in its original library, with save_pretrained(..., safe_serialization=True)",
        details: { files: pickles.slice(0, 16) },
      },
    );
  }
  if (weights.length > 0) {
    return new CoppiceError(
      "COPPICE_FORMAT_MISSING_FILE",
      `${folder.label} holds ${weights[0]} but neither ${singleFileName} nor ${indexFileName}`,
      { hint: `copy ${indexFileName} as well`, details: { files: weights.slice(0, 16) } },
    );
  }
  return new CoppiceError(
    "COPPICE_FORMAT_MISSING_FILE",
    `${folder.label} holds neither ${singleFileName} nor ${indexFileName}; it has ${names.length} files` +
      (names.length > 0 ? ` such as ${names.slice(0, 3).join(", ")}` : ""),
    { hint: "give the folder of a Hugging Face checkpoint" },
  );
}

function badIndex(what: string): CoppiceError {
  return new CoppiceError("COPPICE_FORMAT_INDEX", `${indexFileName} is wrong: ${what}`, {
    hint: "the index and the shards are of different downloads or versions",
  });
}
