import {
  attentionNoteFiles,
  type CheckpointTarget,
  checkComplete,
  companionFiles,
  type LoadedCheckpoint,
  type OutputFile,
  textFile,
  type WriteOptions,
  writeFiles,
} from "@coppice/checkpoint";
import { type AttentionPlan, throwIfAborted } from "@coppice/core";
import { exportConfig, tokenIds, type WeightType } from "./export-config.js";
import { type GraphFiles, type GraphOptions, graphFiles } from "./graph-files.js";
import type { ExportTarget } from "./targets.js";

/** The files of an exported folder. */
export interface ExportSummary {
  readonly target: ExportTarget;
  /** By the names of transformers.js; mixed bits go by those that take the most bytes. */
  readonly type: WeightType;
  readonly files: readonly { readonly name: string; readonly bytes: number }[];
  /** Bytes of all files. */
  readonly bytes: number;
  /** Positions that the graph can run. */
  readonly contextLength: number;
  /** Where an attention plan limits heads: tokens of context that its rules are resolved at, and the share that heads see of them. */
  readonly attention?: { readonly length: number; readonly density: number };
}

const generationFile = "generation_config.json";

/**
 * Writes a checkpoint as a folder that ONNX Runtime and transformers.js run as it is: `onnx/model<suffix>.onnx`, a
 * decoder with cached keys and values (`decoderGraph` has its inputs and outputs), its weights in files beside it,
 * config, generation settings and tokenizer. Matrices of a quantized checkpoint keep their codes, byte for byte; all
 * others are float32. Weights are read once, one matrix at a time. The target is complete or absent.
 *
 * ```ts
 * await using checkpoint = await loadModel(await openFolder("model-small"));
 * await exportOnnx(checkpoint, folderTarget("model-onnx"), { target: "cpu" });
 * ```
 * @throws COPPICE_EXPORT_UNSUPPORTED, COPPICE_FORMAT_TRUNCATED before anything is written; COPPICE_FORMAT_NAN,
 * COPPICE_IO_EXISTS, COPPICE_IO_NO_SPACE, COPPICE_IO_READ, COPPICE_IO_WRITE, COPPICE_ABORTED
 */
export async function exportOnnx(
  loaded: LoadedCheckpoint,
  target: CheckpointTarget,
  options: GraphOptions & WriteOptions,
): Promise<ExportSummary> {
  const { files, summary } = await layOut(loaded, options);
  await writeFiles(files, target, options);
  return summary;
}

/** What `exportOnnx` with the same arguments writes. Reads no weights. @throws as `exportOnnx` */
export async function predictExport(
  loaded: LoadedCheckpoint,
  options: GraphOptions & Pick<WriteOptions, "signal">,
): Promise<ExportSummary> {
  return (await layOut(loaded, options)).summary;
}

async function layOut(
  loaded: LoadedCheckpoint,
  options: GraphOptions & Pick<WriteOptions, "signal">,
): Promise<{ files: OutputFile[]; summary: ExportSummary }> {
  checkComplete(loaded);
  throwIfAborted(options.signal, "laying out the graph");
  const { model } = loaded;
  const { attention = loaded.attention ?? null } = options;
  const graph = graphFiles(model, loaded.weights, { ...options, attention });
  const companions = await companionFiles(loaded, [], { signal: options.signal });
  const files = [
    textFile("config.json", `${JSON.stringify(exportConfig(loaded, graph), null, 2)}\n`),
    ...companions,
    ...noteFiles(loaded, attention, graph),
    ...graph.files,
  ];
  if (!companions.some(({ name }) => name === generationFile)) {
    files.push(textFile(generationFile, `${JSON.stringify({ eos_token_id: tokenIds(model.endTokens) })}\n`));
  }
  return {
    files,
    summary: {
      target: options.target,
      type: graph.type,
      files: files.map(({ name, bytes }) => ({ name, bytes })),
      bytes: files.reduce((sum, { bytes }) => sum + bytes, 0),
      contextLength: graph.positions,
      ...(graph.spans && { attention: { length: graph.spans.length, density: graph.spans.density } }),
    },
  };
}

/** The note about the plan that the graph keeps, or about the one that the checkpoint brings along and the graph does not keep. */
function noteFiles(
  { model, attention: own }: LoadedCheckpoint,
  attention: AttentionPlan | null,
  { positions, spans }: GraphFiles,
): OutputFile[] {
  return spans
    ? attentionNoteFiles(attention, model, { keptBy: "graph", length: spans.length })
    : attentionNoteFiles(own, model, { keptBy: "nothing", length: positions });
}
