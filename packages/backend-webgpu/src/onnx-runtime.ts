/** What is used of `onnxruntime-web/webgpu`. */
export type OnnxRuntime = Pick<typeof import("onnxruntime-common"), "InferenceSession" | "Tensor">;

let last: Promise<unknown> = Promise.resolve();

/** Does work of ONNX Runtime behind what others do with it: its WebAssembly holds one suspended call at a time. */
export function oneAtATime<T>(work: () => Promise<T>): Promise<T> {
  const next = last.then(work);
  last = next.catch(() => {});
  return next;
}
