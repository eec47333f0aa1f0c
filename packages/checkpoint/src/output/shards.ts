import { type DType, dtypeBytes, elementCount } from "@coppice/core";
import { layOutSafetensors } from "../safetensors-bytes.js";
import { indexFileName, singleFileName } from "../tensor-files.js";
import { bytesContent, type Content } from "./content.js";
import { type OutputFile, outputFile } from "./write-files.js";

/** A tensor of the checkpoint to be written. */
export interface OutputTensor {
  readonly name: string;
  readonly dtype: DType;
  readonly shape: readonly number[];
  /** Its bytes, one content after the other. */
  readonly contents: readonly Content[];
}

/** Bytes of tensors per file when nothing else is asked for: what Hugging Face libraries write. */
export const defaultShardBytes = 5_000_000_000;

/** Loaders of the Hugging Face libraries refuse files that do not name their framework. */
const headerMetadata = new Map([["format", "pt"]]);

/** A file of tensors: its header, and the tensors in the order in which they follow it. */
export interface Shard<T> {
  readonly name: string;
  readonly header: Uint8Array;
  readonly order: readonly T[];
}

/**
 * Packs tensors in their order into files of at most `maxShardBytes` tensor bytes (a larger tensor has a file of its
 * own), named as Hugging Face libraries name them.
 * @returns the files, and the index when there are several
 */
export function layOutShards<T extends Pick<OutputTensor, "name" | "dtype" | "shape">>(
  tensors: readonly T[],
  maxShardBytes: number,
): { shards: readonly Shard<T>[]; index?: OutputFile } {
  const shards: T[][] = [[]];
  let size = 0;
  let total = 0;
  for (const tensor of tensors) {
    const bytes = elementCount(tensor.shape) * dtypeBytes[tensor.dtype];
    if (size > 0 && size + bytes > maxShardBytes) {
      shards.push([]);
      size = 0;
    }
    (shards.at(-1) as T[]).push(tensor);
    size += bytes;
    total += bytes;
  }
  const names = shards.map((_, i) =>
    shards.length === 1 ? singleFileName : `model-${number(i + 1)}-of-${number(shards.length)}.safetensors`,
  );
  const files = shards.map((shard, i) => ({
    name: names[i] as string,
    ...layOutSafetensors(shard, headerMetadata),
  }));
  if (shards.length === 1) return { shards: files };
  const lines = shards.flatMap((shard, i) =>
    // Built as text, because a tensor may be called __proto__.
    shard.map(({ name }) => `    ${JSON.stringify(name)}: ${JSON.stringify(names[i])}`),
  );
  const index = `{\n  "metadata": {\n    "total_size": ${total}\n  },\n  "weight_map": {\n${lines.sort().join(",\n")}\n  }\n}\n`;
  return { shards: files, index: outputFile(indexFileName, [bytesContent(new TextEncoder().encode(index))]) };
}

/** The files of `layOutShards` with their contents, the index among them. */
export function packShards(tensors: readonly OutputTensor[], maxShardBytes: number): OutputFile[] {
  const { shards, index } = layOutShards(tensors, maxShardBytes);
  const files = shards.map(({ name, header, order }) =>
    outputFile(name, [bytesContent(header), ...order.flatMap(({ contents }) => contents)]),
  );
  return index ? [...files, index] : files;
}

function number(value: number): string {
  return String(value).padStart(5, "0");
}
