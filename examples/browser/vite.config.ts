import { defaultClientConditions, defineConfig } from "vite";

/** Browsers share memory between threads only in pages that are isolated from other sites. */
const headers = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
};

export default defineConfig({
  // Works in any folder of a server; what is missing there is a 404 and not the page once more.
  base: "./",
  appType: "mpa",
  server: { headers },
  preview: { headers },
  // ONNX Runtime's own worker threads load its script by URL, so that it stays a file of its own.
  resolve: { conditions: ["onnxruntime-web-use-extern-wasm", ...defaultClientConditions] },
  worker: { format: "es" },
  build: { target: "es2022", chunkSizeWarningLimit: 1000 },
});
