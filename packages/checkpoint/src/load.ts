import { type MoeModel, moeLayers, type TensorRef, type WeightReader } from "@coppice/core";
import { ConfigReader } from "./config.js";
import { describeModel } from "./families/describe.js";
import { type Detected, detectFamily } from "./families/detect.js";
import { findEdits } from "./families/expert-edits.js";
import type { ExpertTensors } from "./families/expert-tensors.js";
import { fingerprintModel } from "./fingerprint.js";
import { type CheckpointFolder, readSmallFile } from "./folder.js";
import { type JsonObject, parseJsonObject } from "./json-object.js";
import { defaultLimits, type FormatLimits } from "./limits.js";
import { SourceCache } from "./source-cache.js";
import { openTensorFiles, type TensorFiles } from "./tensor-files.js";
import { createWeightReader } from "./weight-reader.js";

/** A checkpoint that is open: its headers are read, its weights are not. */
export interface LoadedCheckpoint extends AsyncDisposable {
  readonly model: MoeModel;
  /** config.json as it is. */
  readonly config: JsonObject;
  readonly weights: WeightReader;
  /** Every tensor of the files, by name. */
  readonly tensors: ReadonlyMap<string, TensorRef>;
  readonly shards: TensorFiles["shards"];
  readonly folder: CheckpointFolder;
  /** The folder's open files, shared by all that read this checkpoint. */
  readonly sources: SourceCache;
  /** The family description that recognised it, and how its experts lie in the files. */
  readonly detected: Detected;
  /** What surgery edits, of every set of experts. */
  readonly edits: readonly ExpertTensors[];
  /** Closes the files and the folder. Reads that are under way may fail. */
  close(): Promise<void>;
}

export interface LoadOptions {
  readonly limits?: FormatLimits;
  readonly signal?: AbortSignal;
}

/**
 * Opens a Hugging Face checkpoint folder. Takes ownership of `folder`: it is closed by `close`, or at once when this
 * fails.
 *
 * ```ts
 * await using checkpoint = await loadModel(await openFolder("Mixtral-8x7B-v0.1"));
 * const router = await checkpoint.weights.read(checkpoint.tensors.get("model.norm.weight")!);
 * ```
 * @throws the COPPICE_FORMAT and COPPICE_FAMILY errors, COPPICE_IO_READ, COPPICE_ABORTED
 */
export async function loadModel(
  folder: CheckpointFolder,
  options: LoadOptions = {},
): Promise<LoadedCheckpoint> {
  const { limits = defaultLimits, signal } = options;
  const sources = new SourceCache(folder);
  const close = async () => {
    await sources.close();
    await folder.close();
  };
  try {
    const names = new Set((await folder.list()).map(({ name }) => name));
    const files = await openTensorFiles(folder, sources, limits, signal);
    const config = await readJson(folder, "config.json", limits, signal);
    const generation = names.has("generation_config.json")
      ? await readJson(folder, "generation_config.json", limits, signal)
      : {};
    const reader = new ConfigReader(config, "config.json");
    const detected = detectFamily(reader, files.tensors);
    const description = describeModel(
      detected,
      reader,
      new ConfigReader(generation, "generation_config.json"),
      files.tensors,
    );
    const fingerprint = await fingerprintModel(description, files.tensors, sources, signal);
    return {
      model: { ...description, fingerprint },
      config,
      weights: createWeightReader(sources),
      tensors: files.tensors,
      shards: files.shards,
      folder,
      sources,
      detected,
      edits: findEdits(
        detected,
        reader,
        moeLayers({ layers: description.layers }).map(({ index }) => index),
        files.tensors,
      ),
      close,
      [Symbol.asyncDispose]: close,
    };
  } catch (error) {
    await close().catch(() => {});
    throw error;
  }
}

async function readJson(
  folder: CheckpointFolder,
  name: string,
  limits: FormatLimits,
  signal: AbortSignal | undefined,
): Promise<JsonObject> {
  const bytes = await readSmallFile(folder, name, limits.configBytes, signal);
  return parseJsonObject(bytes, name, "COPPICE_FORMAT_CONFIG");
}
