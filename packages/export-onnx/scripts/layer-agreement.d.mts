import type { LoadedCheckpoint } from "@coppice/checkpoint";
import type { Runner } from "@coppice/core";
import type * as node from "onnxruntime-node";

export interface LayerAgreement {
  readonly layer: number;
  /** Cosine of the hidden states behind the layer, given those before it. */
  readonly output: number;
  /** Cosine of what the layer adds to them. */
  readonly added: number;
  /** Tokens that were left out, since they chose other experts. */
  readonly moved: number;
  /** By how much the router's logits of those were below the ones of the experts that were left, at most. */
  readonly worse: number;
}

/** Compares every layer of an exported graph with the reference backend on the dequantized weights. */
export function layerAgreement(request: {
  readonly loaded: Pick<LoadedCheckpoint, "model" | "weights">;
  /** The folder, exported with `expertOutputs`. */
  readonly files: ReadonlyMap<string, Uint8Array>;
  /** Of the reference backend, with the same weights. */
  readonly runner: Runner;
  readonly runtime: Pick<typeof node, "InferenceSession" | "Tensor">;
  readonly ids: Int32Array;
}): Promise<LayerAgreement[]>;
