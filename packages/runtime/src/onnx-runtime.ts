import type { InferenceSession, Tensor } from "onnxruntime-common";

/** What is used of onnxruntime-node or onnxruntime-web; either package as a whole fits. */
export type OnnxRuntime = Pick<typeof import("onnxruntime-common"), "InferenceSession" | "Tensor">;

export type { InferenceSession, Tensor };

/** Named tensors that go into a run or come out of one. */
export type Tensors = Readonly<Record<string, Tensor>>;
