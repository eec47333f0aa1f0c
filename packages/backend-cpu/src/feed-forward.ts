import type { DecoderLayer, MlpSpec, Tap } from "@coppice/core";
import { denseGraph, mlpShape } from "@coppice/onnx";
import type { Tensor } from "onnxruntime-node";
import { runExperts } from "./experts.js";
import type { UnitMemory } from "./layer-memory.js";
import type { PlannedExperts } from "./planned-layers.js";
import type { Feeds, Runtime, Sessions } from "./sessions.js";
import type { LayerWeights } from "./weights.js";

export interface FeedForwardRequest {
  readonly layer: DecoderLayer;
  readonly weights: LayerWeights;
  /** What the experts are under the plan; undefined in a dense layer. */
  readonly experts: PlannedExperts | undefined;
  readonly residualScale: number | undefined;
  /** Input of the block and what it adds to, [N, hidden]. */
  readonly normed: Tensor;
  readonly residual: Tensor;
  /** [N, slots]; undefined in a dense layer. */
  readonly logits: Tensor | undefined;
  /** [N], 1 for rows that skip no expert; absent: none. */
  readonly spared: Uint8Array | undefined;
  readonly tap: Tap | undefined;
  /** [N], place of each row in the packed order of the request; read by the tap alone. */
  readonly places: Int32Array;
  /** Bytes of what all experts compute from some tokens at once. */
  readonly everyBytes: number;
  /** The unit continues what a cache holds. */
  readonly cached: boolean;
  readonly memory: UnitMemory | undefined;
  readonly signal: AbortSignal | undefined;
}

/** What a feed-forward block gave. */
export interface FedForward {
  /** The output of the decoder layer, [N, hidden]. */
  readonly result: Tensor;
  /** Choices that routed experts ran for. */
  readonly expertTokens: number;
}

/** The output of a decoder layer, [N, hidden]: residual, shared expert and experts, or residual and dense MLP. */
export async function runFeedForward(
  runtime: Runtime,
  sessions: Sessions,
  request: FeedForwardRequest,
): Promise<FedForward> {
  const { layer, weights, experts, residualScale, normed, residual, logits } = request;
  const { feedForward } = layer;
  const hidden = normed.dims[1] as number;
  const dense = async (mlp: MlpSpec, feeds: Feeds): Promise<Tensor> => {
    const shape = mlpShape(mlp, hidden);
    const options = {
      ...(feeds.projection && { gated: true }),
      ...(residualScale !== undefined && { residualScale }),
    };
    const key = `dense ${JSON.stringify({ ...shape, ...options })}`;
    const inputs = { normed, residual, ...feeds };
    return (await sessions.run(key, () => denseGraph(shape, options), inputs)).result as Tensor;
  };
  if (feedForward.kind === "dense") {
    return { result: await dense(feedForward.mlp, { ...weights.mlps[0] }), expertTokens: 0 };
  }
  if (feedForward.kind !== "moe" || !experts || !logits) return { result: residual, expertTokens: 0 };
  const { shared } = feedForward;
  const base = shared && weights.shared ? await dense(shared, weights.shared) : residual;
  return runExperts(runtime, sessions, {
    ...request,
    layer: layer.index,
    spec: feedForward,
    experts,
    originals: weights.mlps,
    // Experts of a layer are alike in shape.
    shape: mlpShape(feedForward.experts[0] as MlpSpec, hidden),
    stream: residual,
    residual: base,
    logits,
  });
}
