import {
  type AttentionPlan,
  type MoeModel,
  parseAttentionPlan,
  type TensorRef,
  type WeightReader,
} from "@coppice/core";
import { ConfigReader } from "./config.js";
import { type Described, describeModel } from "./families/describe.js";
import { type Candidate, type Detected, findCandidates, unknownFamily } from "./families/detect.js";
import type { ExpertTensors } from "./families/expert-tensors.js";
import { NameIndex } from "./families/name-index.js";
import { fingerprintModel } from "./fingerprint.js";
import { type CheckpointFolder, readSmallFile } from "./folder.js";
import { type JsonObject, parseJsonObject } from "./json-object.js";
import { defaultLimits, type FormatLimits } from "./limits.js";
import { readOrigin } from "./output/provenance.js";
import { withSkipRules } from "./skip-rules.js";
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
  /** Weight files of which only the header is there; empty unless `headersOnly` was given. */
  readonly incomplete: readonly string[];
  readonly folder: CheckpointFolder;
  /** The folder's open files, shared by all that read this checkpoint. */
  readonly sources: SourceCache;
  /** The family description that recognised it, and how its experts lie in the files. */
  readonly detected: Detected;
  /** What surgery edits, of every set of experts. */
  readonly edits: readonly ExpertTensors[];
  /** Layers for multi-token prediction, with experts or without. */
  readonly mtpLayers: number;
  /** `quant_method` of config.json; undefined when it announces no quantization. */
  readonly quantization: string | undefined;
  /** How far the heads of this checkpoint see, where its `coppice.json` says so. */
  readonly attention: AttentionPlan | undefined;
  /** Closes the files and the folder. Reads that are under way may fail. */
  close(): Promise<void>;
}

export interface LoadOptions {
  readonly limits?: FormatLimits;
  /**
   * Opens a folder whose weight files may hold nothing but their headers, to inspect it; default false. Where weights
   * are missing the fingerprint is empty, so no plan fits the model.
   */
  readonly headersOnly?: boolean;
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
 * @throws the COPPICE_FORMAT, COPPICE_FAMILY and COPPICE_ATTENTION errors, COPPICE_IO_READ, COPPICE_ABORTED
 */
export async function loadModel(
  folder: CheckpointFolder,
  options: LoadOptions = {},
): Promise<LoadedCheckpoint> {
  const { limits = defaultLimits, headersOnly = false, signal } = options;
  const sources = new SourceCache(folder);
  const close = async () => {
    await sources.close();
    await folder.close();
  };
  try {
    const names = new Set((await folder.list()).map(({ name }) => name));
    const files = await openTensorFiles(folder, sources, { limits, headersOnly, signal });
    const config = await readJson(folder, "config.json", limits, signal);
    const generation = names.has("generation_config.json")
      ? await readJson(folder, "generation_config.json", limits, signal)
      : {};
    const root = new ConfigReader(config, "config.json");
    const { candidate, described } = describeCheckpoint(
      root,
      new ConfigReader(generation, "generation_config.json"),
      files.tensors,
    );
    const model = withSkipRules(described.model, root);
    const fingerprint =
      files.incomplete.length > 0 ? "" : await fingerprintModel(model, files.tensors, sources, signal);
    const origin = await readOrigin(folder, sources, { signal });
    const complete = { ...model, fingerprint, ...(origin && { derivedFrom: origin.derivedFrom }) };
    return {
      model: complete,
      config,
      weights: createWeightReader(sources),
      tensors: files.tensors,
      shards: files.shards,
      incomplete: files.incomplete,
      folder,
      sources,
      detected: {
        family: candidate.family,
        layout: described.layout,
        counts: candidate.counts,
        ...(candidate.wrapper !== undefined && { wrapper: candidate.wrapper }),
      },
      edits: described.edits,
      mtpLayers: described.mtp.length,
      quantization: described.quantization,
      attention: origin?.attention === undefined ? undefined : parseAttentionPlan(origin.attention, complete),
      close,
      [Symbol.asyncDispose]: close,
    };
  } catch (error) {
    await close().catch(() => {});
    throw error;
  }
}

/**
 * The description of a checkpoint. One whose config has no `model_type` is recognised by its tensors: it is that of
 * the one family that describes it completely.
 */
function describeCheckpoint(
  root: ConfigReader,
  generation: ConfigReader,
  tensors: ReadonlyMap<string, TensorRef>,
): { candidate: Candidate; described: Described } {
  const index = new NameIndex(tensors);
  const candidates = findCandidates(root, tensors);
  const [only] = candidates as [Candidate, ...Candidate[]];
  if (candidates.length === 1)
    return { candidate: only, described: describeModel(only, root, generation, index) };
  const fitting = candidates.flatMap((candidate) => {
    try {
      return [{ candidate, described: describeModel(candidate, root, generation, index) }];
    } catch {
      return [];
    }
  });
  if (fitting.length === 1) return fitting[0] as (typeof fitting)[0];
  throw unknownFamily(root, tensors, undefined);
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
