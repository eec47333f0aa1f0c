import {
  type AttentionPlan,
  CoppiceError,
  type Plan,
  parseAttentionPlan,
  parsePlan,
  throwIfAborted,
} from "@coppice/core";
import { readSmallFile } from "./folder.js";
import { replaceJsonValues } from "./json-edit.js";
import type { JsonObject } from "./json-object.js";
import { defaultLimits } from "./limits.js";
import type { LoadedCheckpoint } from "./load.js";
import { attentionNoteFiles } from "./output/attention-note.js";
import { checkComplete, companionFiles, textFile } from "./output/companion-files.js";
import { configChanges } from "./output/config-changes.js";
import { type ExportShape, exportShape, type OutputLayout } from "./output/export-shape.js";
import { outputTensors } from "./output/output-tensors.js";
import { createProvenance, provenanceFileName, provenanceText } from "./output/provenance.js";
import { defaultShardBytes, packShards } from "./output/shards.js";
import type { CheckpointTarget } from "./output/target.js";
import { type OutputFile, type WriteOptions, writeFiles } from "./output/write-files.js";

/** What the size of an output checkpoint depends on besides its plan. */
export interface OutputOptions {
  /** Most tensor bytes per file; default 5 GB, as Hugging Face libraries write. */
  readonly maxShardBytes?: number;
  /** Default `stock`. */
  readonly layout?: OutputLayout;
  /** Kept in `coppice.json` under `metadata`; must survive JSON. */
  readonly metadata?: JsonObject;
  /**
   * How far heads see, kept in `coppice.json`, with a note about it in `ATTENTION.md`; default: what the loaded checkpoint
   * brings along.
   */
  readonly attention?: AttentionPlan;
}

/** The files of an output checkpoint, known before any is written. */
export interface OutputSummary {
  readonly files: readonly { readonly name: string; readonly bytes: number }[];
  /** Bytes of all files. */
  readonly bytes: number;
  /** Bytes of all tensors, without headers. */
  readonly tensorBytes: number;
  /** Most experts of a layer, those that fill up included. */
  readonly experts: number;
  readonly topK: number;
  /** Experts that fill up layers and are never chosen, and the bytes of their tensors and router rows. */
  readonly padded: { readonly experts: number; readonly bytes: number };
}

/**
 * Writes the checkpoint that `plan` makes of a loaded one, in its family's own stock layout, so that it is an
 * ordinary, smaller checkpoint: kept experts renumbered in slot order with all that belongs to them, merged experts
 * computed in float32 and rounded to the stored form (`roundToStored` of core), router rows, biases and corrections in
 * slot order or those that the plan gives, all else copied byte by byte; config and index rewritten, tokenizer and other
 * small files copied, `coppice.json` added. Layers for multi-token prediction follow the plan of their decoder layer, but
 * keep their own router entries, and an expert unchanged where the plan puts hidden units together.
 *
 * Layers of different sizes are filled up with experts that are never chosen, where the family's router allows to prove
 * that; else the plan is refused, or written in the runtime layout (`layout: "runtime"`), which also keeps skip rules.
 *
 * Memory does not depend on the size of the checkpoint. The target is complete or absent.
 * @throws COPPICE_PLAN_INVALID, COPPICE_PLAN_MODEL, COPPICE_PLAN_KEEP, COPPICE_PLAN_GROUPS, COPPICE_PLAN_EXPORT, the
 * COPPICE_ATTENTION errors,
 * COPPICE_FORMAT_SHAPE, COPPICE_FORMAT_MISSING_TENSOR, COPPICE_FORMAT_DTYPE, COPPICE_FORMAT_TRUNCATED before anything is written;
 * COPPICE_FORMAT_NAN, COPPICE_IO_EXISTS, COPPICE_IO_NO_SPACE, COPPICE_IO_READ, COPPICE_IO_WRITE, COPPICE_ABORTED
 */
export async function applyPlan(
  loaded: LoadedCheckpoint,
  plan: Plan,
  target: CheckpointTarget,
  options: OutputOptions & WriteOptions = {},
): Promise<OutputSummary> {
  checkComplete(loaded);
  const { files, summary } = await layOut(loaded, plan, options);
  await writeFiles(files, target, options);
  return summary;
}

/** What `applyPlan` with the same arguments writes, to the byte. Reads no weights. @throws as `applyPlan` */
export async function predictOutput(
  loaded: LoadedCheckpoint,
  plan: Plan,
  options: OutputOptions & Pick<WriteOptions, "signal"> = {},
): Promise<OutputSummary> {
  return (await layOut(loaded, plan, options)).summary;
}

async function layOut(
  loaded: LoadedCheckpoint,
  plan: Plan,
  options: OutputOptions & Pick<WriteOptions, "signal">,
): Promise<{ files: OutputFile[]; summary: OutputSummary }> {
  const { model } = loaded;
  const { maxShardBytes = defaultShardBytes, metadata, layout = "stock", signal } = options;
  const attention = options.attention ? parseAttentionPlan(options.attention, model) : loaded.attention;
  throwIfAborted(signal, "laying out the checkpoint");
  if (!(maxShardBytes >= 1)) {
    throw new CoppiceError("COPPICE_USAGE", `maxShardBytes is ${maxShardBytes}, expected at least 1`);
  }
  const checked = parsePlan(plan, model);
  const shape = exportShape(model, checked, layout);
  const { tensors, paddedBytes } = outputTensors(loaded, shape);
  const files = [
    ...packShards(tensors, maxShardBytes),
    await rewriteConfig(loaded, shape, signal),
    textFile(provenanceFileName, provenanceText(createProvenance(model, checked, attention, metadata))),
    ...attentionNoteFiles(attention, model),
    ...(await companionFiles(loaded, [provenanceFileName])),
  ];
  throwIfAborted(signal, "laying out the checkpoint");
  const sum = (items: readonly { bytes: number }[]) => items.reduce((total, { bytes }) => total + bytes, 0);
  return {
    files,
    summary: {
      files: files.map(({ name, bytes }) => ({ name, bytes })),
      bytes: sum(files),
      tensorBytes: sum(tensors.flatMap(({ contents }) => contents)),
      experts: shape.experts,
      topK: shape.topK,
      padded: { experts: shape.padded, bytes: paddedBytes },
    },
  };
}

/** Everything that states a number that changed, or names a renumbered expert; all else stays as it is spelt. */
async function rewriteConfig(
  loaded: LoadedCheckpoint,
  shape: ExportShape,
  signal: AbortSignal | undefined,
): Promise<OutputFile> {
  const bytes = await readSmallFile(loaded.folder, "config.json", defaultLimits.configBytes, signal);
  const { replace, insert } = configChanges(loaded, shape);
  return textFile("config.json", replaceJsonValues(new TextDecoder().decode(bytes), replace, insert));
}
