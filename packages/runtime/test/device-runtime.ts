import type { OnnxRuntime } from "@coppice/runtime";
import * as ort from "onnxruntime-node";

/** A tensor that is elsewhere, as those on a GPU are: its data must be fetched, and it must be given back. */
class DeviceTensor {
  readonly location = "gpu-buffer";
  readonly #inner: ort.Tensor;
  readonly #onDispose: () => void;
  #disposed = false;

  constructor(inner: ort.Tensor, onDispose: () => void) {
    this.#inner = inner;
    this.#onDispose = onDispose;
  }

  get type() {
    return this.#inner.type;
  }

  get dims() {
    return this.#inner.dims;
  }

  get data(): never {
    throw new Error("The data is not on CPU. Use `getData()` to download GPU data to CPU");
  }

  /** What a session gets. */
  get inner(): ort.Tensor {
    if (this.#disposed) throw new Error("The tensor is disposed.");
    return this.#inner;
  }

  async getData(releaseData = false) {
    const { data } = this.inner;
    if (releaseData) this.dispose();
    return data;
  }

  dispose(): void {
    if (this.#disposed) throw new Error("disposed twice");
    this.#disposed = true;
    this.#onDispose();
  }
}

/** onnxruntime-node, but all outputs of its sessions stay elsewhere; `live` of them have not been given back. */
export function deviceRuntime(): { readonly runtime: OnnxRuntime; readonly live: () => number } {
  let live = 0;
  const create = async (path: string, options?: ort.InferenceSession.SessionOptions) => {
    const session = await ort.InferenceSession.create(path, options);
    return {
      inputNames: session.inputNames,
      outputNames: session.outputNames,
      inputMetadata: session.inputMetadata,
      release: () => session.release(),
      async run(feeds: Record<string, ort.Tensor | DeviceTensor>, fetches: string[]) {
        const plain = Object.entries(feeds).map(([name, tensor]) => [
          name,
          tensor instanceof DeviceTensor ? tensor.inner : tensor,
        ]);
        const outputs = await session.run(Object.fromEntries(plain), fetches);
        const wrapped = Object.entries(outputs).map(([name, tensor]) => {
          live++;
          return [name, new DeviceTensor(tensor as ort.Tensor, () => live--)];
        });
        return Object.fromEntries(wrapped);
      },
    };
  };
  const runtime = { Tensor: ort.Tensor, InferenceSession: { create } } as unknown as OnnxRuntime;
  return { runtime, live: () => live };
}
