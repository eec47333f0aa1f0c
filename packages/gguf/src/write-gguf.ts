import {
  attentionNoteFiles,
  bytesContent,
  type CheckpointTarget,
  type LoadedCheckpoint,
  outputFile,
  type WriteOptions,
  writeFiles,
} from "@coppice/checkpoint";
import { describeForGguf } from "./architecture.js";
import { alignedBytes, encodeHeader } from "./header.js";
import { type GgufFileType, modelMetadata } from "./model-metadata.js";
import { modelTensors } from "./model-tensors.js";
import { TensorContents } from "./tensor-contents.js";
import { tokenizerMetadata } from "./tokenizer-metadata.js";

export interface GgufOptions extends WriteOptions {
  /** Of all tensors but norms, routers and, with Q4_0, the head. */
  readonly type: GgufFileType;
  /** Name of the model: `general.name`, and the first part of the file's name. */
  readonly name: string;
  /** `tokenizer.ggml.pre`, for a tokenizer whose way to split text is not recognized; default: by its tokenizer.json. */
  readonly preTokenizer?: string;
}

/** The file that was written. */
export interface GgufSummary {
  /** Name within the target: `<name>-<type>.gguf`. */
  readonly file: string;
  readonly bytes: number;
  /** `general.architecture`. */
  readonly architecture: string;
  /** Tensors, experts of a layer stacked. */
  readonly tensors: number;
}

/**
 * Writes a checkpoint of Mixtral, Qwen3-MoE or OLMoE, with any number of experts, as a GGUF file for llama.cpp and the
 * programs that build on it. Weights are read once, in bands of rows, so memory does not depend on the size of the model;
 * quantized ones are dequantized first. A plan for attention that the checkpoint brings along is told of in `ATTENTION.md` beside the file, which has no
 * place for it. The target is complete or absent.
 *
 * ```ts
 * await using loaded = await loadModel(await openFolder("Mixtral-8x7B-v0.1"));
 * await writeGguf(loaded, folderTarget("out"), { type: "Q4_0", name: "Mixtral-8x7B-v0.1" });
 * ```
 * @throws COPPICE_EXPORT_UNSUPPORTED, COPPICE_TOKENIZER before anything is written; COPPICE_FORMAT_NAN, COPPICE_IO_EXISTS,
 * COPPICE_IO_NO_SPACE, COPPICE_IO_READ, COPPICE_IO_WRITE, COPPICE_ABORTED
 */
export async function writeGguf(
  loaded: LoadedCheckpoint,
  target: CheckpointTarget,
  options: GgufOptions,
): Promise<GgufSummary> {
  const { type, name, preTokenizer, signal, emitter } = options;
  const model = describeForGguf(loaded.model);
  const tensors = modelTensors(model, type);
  const metadata = new Map([
    ...modelMetadata(model, loaded.config, type, name),
    ...(await tokenizerMetadata(loaded, { preTokenizer, signal })),
  ]);
  const contents = new TensorContents(loaded.weights);
  const file = outputFile(`${name}-${type}.gguf`, [
    bytesContent(encodeHeader(metadata, tensors)),
    ...tensors.flatMap((tensor) => {
      const parts = contents.of(tensor);
      const bytes = parts.reduce((sum, part) => sum + part.bytes, 0);
      return [...parts, bytesContent(new Uint8Array(alignedBytes(bytes) - bytes))];
    }),
  ]);
  const note = attentionNoteFiles(loaded.attention, loaded.model, { keptBy: "nothing" });
  await writeFiles([file, ...note], target, { ...(signal && { signal }), ...(emitter && { emitter }) });
  return {
    file: file.name,
    bytes: file.bytes,
    architecture: model.architecture.name,
    tensors: tensors.length,
  };
}
