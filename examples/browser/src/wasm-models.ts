// The exported models on the processor, by ONNX Runtime.
import { openExportedModel, urlFolder, widenedFolder } from "@coppice/runtime";
import script from "onnxruntime-web/ort-wasm-simd-threaded.mjs?url";
import wasm from "onnxruntime-web/ort-wasm-simd-threaded.wasm?url";
import * as ort from "onnxruntime-web/wasm";
import type { ModelEntry } from "./manifest.js";
import type { WritingModel } from "./writing-model.js";

/**
 * Functions that open the models one by one.
 * @param progress called with the bytes of all models that have arrived
 */
export function wasmModels(
  base: string,
  entries: readonly ModelEntry[],
  threads: number,
  progress: (loaded: number) => void,
): (() => Promise<WritingModel>)[] {
  ort.env.wasm.numThreads = threads;
  ort.env.wasm.wasmPaths = { mjs: script, wasm };
  ort.env.logLevel = "error";
  const loaded = new Map<string, number>();
  return entries.map(({ folder, files }) => {
    const urls = new Set(files.map(({ name }) => `${base}${folder}/${name}`));
    const source = urlFolder(`${base}${folder}`, {
      // Consoles show every request that fails as an error, also for files that a folder need not have.
      fetch: async (url, init) => (urls.has(url) ? fetch(url, init) : new Response(null, { status: 404 })),
      onProgress(arrived) {
        loaded.set(`${folder}/${arrived.file}`, arrived.loaded);
        progress([...loaded.values()].reduce((sum, bytes) => sum + bytes, 0));
      },
    });
    return () => openExportedModel(widenedFolder(source), { runtime: ort, keptPrefixes: 0 });
  });
}
