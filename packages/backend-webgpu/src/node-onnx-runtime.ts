import { setFlagsFromString } from "node:v8";
import { CoppiceError } from "@coppice/core";
import { encodeModel } from "@coppice/onnx";
import type { OnnxRuntime } from "./onnx-runtime.js";
import { gemmGraph } from "./ort-graphs.js";

/**
 * V8 compiles the WebAssembly of ONNX Runtime once, quickly and as a whole. By its defaults it would compile what runs often anew, to
 * faster code, which stops the program for a minute or more; what ONNX Runtime does on the host is little.
 */
const compileOnce = {
  before: ["--liftoff-only", "--no-wasm-dynamic-tiering", "--no-wasm-lazy-compilation"],
  after: ["--no-liftoff-only", "--wasm-dynamic-tiering", "--wasm-lazy-compilation"],
} as const;

let loading: Promise<OnnxRuntime> | undefined;

/**
 * `onnxruntime-web/webgpu` in Node, on devices of npm `webgpu`. It looks for what a page has: `navigator.gpu` and the classes of
 * WebGPU become globals where they are missing.
 * @throws COPPICE_BACKEND_UNAVAILABLE when onnxruntime-web is not installed
 */
export async function nodeOnnxRuntime(
  gpu: GPU,
  globals: Readonly<Record<string, unknown>>,
  device: GPUDevice,
): Promise<OnnxRuntime> {
  for (const [name, value] of Object.entries(globals)) {
    if (!(name in globalThis)) Object.defineProperty(globalThis, name, { value, configurable: true });
  }
  if (!("navigator" in globalThis))
    Object.defineProperty(globalThis, "navigator", { value: {}, configurable: true });
  if (!globalThis.navigator.gpu)
    Object.defineProperty(globalThis.navigator, "gpu", { value: gpu, configurable: true });
  takeSharedMemory(device.queue);
  loading ??= load(device);
  try {
    return await loading;
  } catch (error) {
    loading = undefined;
    throw error;
  }
}

async function load(device: GPUDevice): Promise<OnnxRuntime> {
  const name: string = "onnxruntime-web/webgpu";
  for (const flag of compileOnce.before) setFlagsFromString(flag);
  try {
    const runtime = (await import(name)) as typeof import("onnxruntime-common");
    // One thread prepares what the device computes; more would be workers that nothing ends.
    runtime.env.wasm.numThreads = 1;
    // The first session compiles.
    const session = await runtime.InferenceSession.create(encodeModel(gemmGraph(false, 1)), {
      executionProviders: [{ name: "webgpu", device }],
    });
    await session.release();
    return runtime;
  } catch (cause) {
    throw new CoppiceError(
      "COPPICE_BACKEND_UNAVAILABLE",
      `the package onnxruntime-web cannot be loaded: ${String(cause)}`,
      { cause, hint: "npm install onnxruntime-web" },
    );
  } finally {
    for (const flag of compileOnce.after) setFlagsFromString(flag);
  }
}

/** The queue of npm `webgpu` refuses memory that threads share, which WebAssembly of ONNX Runtime has; a page's queue takes it. */
function takeSharedMemory(queue: GPUQueue): void {
  const write = queue.writeBuffer.bind(queue);
  queue.writeBuffer = (buffer, at, data, from = 0, size) => {
    const shared = ArrayBuffer.isView(data) && data.buffer instanceof SharedArrayBuffer;
    if (!shared) return write(buffer, at, data, from, size);
    const { BYTES_PER_ELEMENT: unit = 1 } = data as { BYTES_PER_ELEMENT?: number };
    const first = data.byteOffset + unit * from;
    const bytes = size === undefined ? data.byteLength - unit * from : unit * size;
    write(buffer, at, new Uint8Array(data.buffer, first, bytes).slice());
  };
}
