import {
  bytesContent,
  type CheckpointTarget,
  checkComplete,
  companionFiles,
  type LoadedCheckpoint,
  type OutputFile,
  outputFile,
  textFile,
  type WriteOptions,
  writeFiles,
} from "@coppice/checkpoint";
import { type MoeModel, storedBytes, throwIfAborted } from "@coppice/core";
import { decoderGraph, encodeModel, mlpParts } from "@coppice/onnx";
import { exportConfig, tokenIds, type WeightType, weightTypes } from "./export-config.js";
import { ExternalFiles } from "./external-files.js";
import { packedForm } from "./matrix-contents.js";
import { storedWeights } from "./stored-weights.js";
import { checkExpressible, type ExportTarget, exportedPositions, targetForms } from "./targets.js";

export interface ExportOptions {
  readonly target: ExportTarget;
  /** Outputs `experts.{layer}` with the experts that every token chose; default false. */
  readonly expertOutputs?: boolean;
  /** Most bytes of a file of weights; default 2,000,000,000, what browsers hold in one buffer. */
  readonly maxFileBytes?: number;
}

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
}

const defaultFileBytes = 2_000_000_000;
const graphFolder = "onnx/";
const generationFile = "generation_config.json";

/**
 * Writes a checkpoint as a folder that ONNX Runtime and transformers.js run as it is: `onnx/model<suffix>.onnx`, a
 * decoder with cached keys and values (`decoderGraph` has its inputs and outputs), its weights in files beside it,
 * config, generation settings and tokenizer. Matrices of a quantized checkpoint keep their codes, byte for byte; all
 * others are float32. Weights are read once, one matrix at a time. The target is complete or absent.
 * @throws COPPICE_EXPORT_UNSUPPORTED, COPPICE_FORMAT_TRUNCATED before anything is written; COPPICE_FORMAT_NAN,
 * COPPICE_IO_EXISTS, COPPICE_IO_NO_SPACE, COPPICE_IO_READ, COPPICE_IO_WRITE, COPPICE_ABORTED
 */
export async function exportOnnx(
  loaded: LoadedCheckpoint,
  target: CheckpointTarget,
  options: ExportOptions & WriteOptions,
): Promise<ExportSummary> {
  checkComplete(loaded);
  const { files, summary } = await layOut(loaded, options);
  await writeFiles(files, target, options);
  return summary;
}

/** What `exportOnnx` with the same arguments writes. Reads no weights. @throws as `exportOnnx` */
export async function predictExport(
  loaded: LoadedCheckpoint,
  options: ExportOptions & Pick<WriteOptions, "signal">,
): Promise<ExportSummary> {
  return (await layOut(loaded, options)).summary;
}

async function layOut(
  loaded: LoadedCheckpoint,
  options: ExportOptions & Pick<WriteOptions, "signal">,
): Promise<{ files: OutputFile[]; summary: ExportSummary }> {
  const { model, weights } = loaded;
  const { target, expertOutputs = false, maxFileBytes = defaultFileBytes, signal } = options;
  throwIfAborted(signal, "laying out the graph");
  checkExpressible(model, target);
  const positions = exportedPositions(model);
  const type = weightType(model);
  const graphFile = `model${weightTypes[type]}.onnx`;
  const data = new ExternalFiles(graphFile, maxFileBytes);
  const { experts, halfEmbedding } = targetForms[target];
  const graph = decoderGraph(
    model,
    (builder) => storedWeights(builder, { model, weights, files: data, halfEmbedding }),
    { experts, positions, expertOutputs },
  );
  const dataFiles = data.outputFiles(graphFolder);
  const config = exportConfig(loaded, { type, graphFile, dataFiles: dataFiles.length, positions });
  const companions = await companionFiles(loaded, []);
  const files = [
    textFile("config.json", `${JSON.stringify(config, null, 2)}\n`),
    ...companions,
    ...(companions.some(({ name }) => name === generationFile)
      ? []
      : [textFile(generationFile, `${JSON.stringify({ eos_token_id: tokenIds(model.endTokens) })}\n`)]),
    outputFile(`${graphFolder}${graphFile}`, [bytesContent(encodeModel(graph))]),
    ...dataFiles,
  ];
  return {
    files,
    summary: {
      target,
      type,
      files: files.map(({ name, bytes }) => ({ name, bytes })),
      bytes: files.reduce((sum, { bytes }) => sum + bytes, 0),
      contextLength: positions,
    },
  };
}

/** The bits that take the most bytes among the matrices of MLPs, which are most of a model. */
function weightType({ layers }: MoeModel): WeightType {
  const bytes = new Map<WeightType, number>();
  for (const { feedForward } of layers) {
    const mlps =
      feedForward.kind === "moe"
        ? feedForward.experts
        : feedForward.kind === "dense"
          ? [feedForward.mlp]
          : [];
    for (const mlp of mlps) {
      for (const part of mlpParts) {
        const ref = mlp[part];
        if (!ref) continue;
        const form = packedForm(ref);
        const type = form ? (`q${form.bits}` as const) : "fp32";
        bytes.set(type, (bytes.get(type) ?? 0) + storedBytes(ref));
      }
    }
  }
  const [most] = [...bytes].sort(([, a], [, b]) => b - a);
  return most?.[0] ?? "fp32";
}
