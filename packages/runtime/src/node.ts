import { join } from "node:path";
import { type CheckpointFolder, checkFileName } from "@coppice/checkpoint";
import { openFolder } from "@coppice/checkpoint/node";
import { CoppiceError, isCoppiceError } from "@coppice/core";
import { checkSize, type ExportedFolder, messageOf, missingFile } from "./exported-folder.js";
import { type OpenModelOptions, openExportedModel, type TextModel } from "./exported-model.js";
import type { OnnxRuntime } from "./onnx-runtime.js";

export interface OpenNodeOptions extends Omit<OpenModelOptions, "runtime"> {
  /** Threads of one run. Default: as ONNX Runtime chooses, one per core. */
  readonly threads?: number;
  /** Default: onnxruntime-node. */
  readonly runtime?: OnnxRuntime;
}

/**
 * Loads an exported model from disk. Weights in external data files are mapped into memory, not read.
 * @param path the folder that holds config.json and `onnx`
 * @throws the errors of `openExportedModel`, COPPICE_BACKEND_UNAVAILABLE when onnxruntime-node does not load
 */
export async function openModelFolder(path: string, options: OpenNodeOptions = {}): Promise<TextModel> {
  const { threads, session, ...rest } = options;
  return openExportedModel(await openExportedFolder(path, options), {
    inPlace: options.runtime === undefined && session?.executionProviders === undefined,
    ...rest,
    runtime: options.runtime ?? (await loadRuntime()),
    session: {
      // Failures arrive as exceptions; the library's own lines on stderr would only double them.
      logSeverityLevel: 4,
      // Threads that spin for the usual millisecond starve whatever else runs: with other programs on both cores, a token took twice
      // as long. So short a time bridges the gaps between the operators of a token, and costs nobody much; threads that sleep there
      // have to be woken, which takes longer than most operators.
      extra: { session: { intra_op: { spin_duration_us: "50" } } },
      ...(threads !== undefined && { intraOpNumThreads: threads }),
      ...session,
    },
  });
}

/** True for a folder with ONNX graphs and no safetensors, which is an export and no checkpoint. */
export async function isExportedFolder(path: string): Promise<boolean> {
  try {
    const [files, graphs] = await Promise.all([names(await openFolder(path)), graphNames(path)]);
    return (
      graphs.some((name) => name.endsWith(".onnx")) && !files.some((name) => name.endsWith(".safetensors"))
    );
  } catch (error) {
    if (isCoppiceError(error, "COPPICE_FORMAT_MISSING_FILE")) return false;
    throw error;
  }
}

/**
 * The files of an exported model on disk.
 * @throws COPPICE_FORMAT_MISSING_FILE, COPPICE_IO_READ, COPPICE_ABORTED
 */
export async function openExportedFolder(
  path: string,
  { signal }: { readonly signal?: AbortSignal } = {},
): Promise<ExportedFolder> {
  const folder = await openFolder(path, signal ? { signal } : {});
  const there = await names(folder);
  return {
    label: path,
    async text(name, limit) {
      if (!there.includes(name)) return undefined;
      const source = await folder.open(name);
      try {
        checkSize(name, source.size, limit);
        const bytes = new Uint8Array(source.size);
        await source.read(0, bytes);
        return new TextDecoder().decode(bytes);
      } finally {
        await source.close();
      }
    },
    list: () => graphNames(path),
    async graph(name) {
      checkFileName(name, path);
      if (!(await graphNames(path)).includes(name)) throw missingFile(`onnx/${name}`, path);
      return { graph: join(path, "onnx", name), externalData: [] };
    },
  };
}

async function names(folder: CheckpointFolder): Promise<string[]> {
  return (await folder.list()).map(({ name }) => name);
}

async function graphNames(path: string): Promise<string[]> {
  return names(await openFolder(join(path, "onnx")));
}

async function loadRuntime(): Promise<OnnxRuntime> {
  try {
    return await import("onnxruntime-node");
  } catch (cause) {
    throw new CoppiceError(
      "COPPICE_BACKEND_UNAVAILABLE",
      `onnxruntime-node does not load on ${process.platform}-${process.arch}: ${messageOf(cause)}`,
      {
        cause,
        hint: "install onnxruntime-node; where its CUDA download is blocked, set ONNXRUNTIME_NODE_INSTALL=skip first",
      },
    );
  }
}
