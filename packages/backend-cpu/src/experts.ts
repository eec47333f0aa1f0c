import { type MoeSpec, routeTokens, type Tap } from "@coppice/core";
import { moeGraph } from "@coppice/onnx";
import type { Tensor } from "onnxruntime-node";
import { groupTokens, type TokenGroups } from "./group-tokens.js";
import type { PlannedExperts } from "./planned-layers.js";
import type { Runtime, Sessions } from "./sessions.js";
import { reportLayer } from "./tap.js";
import type { MlpWeights } from "./weights.js";

export interface ExpertsRequest {
  readonly layer: number;
  readonly spec: MoeSpec;
  readonly experts: PlannedExperts;
  /** Input of the block, [N, hidden]. */
  readonly normed: Tensor;
  /** What the block adds to, [N, hidden]. */
  readonly residual: Tensor;
  readonly logits: Tensor;
  readonly tap: Tap | undefined;
}

/**
 * Routes and runs the experts of one layer. Routing happens here and not in the graph: core defines it for every
 * backend, router maps and taps need it, and it takes some two hundredths of the experts' time.
 */
export async function runExperts(
  runtime: Runtime,
  sessions: Sessions,
  { layer, spec, experts, normed, residual, logits, tap }: ExpertsRequest,
): Promise<Tensor> {
  const [tokens = 0, hidden = 0] = normed.dims;
  const width = spec.experts[0]?.width ?? 0;
  const values = logits.data as Float32Array;
  const routing = routeTokens(values, tokens, experts.spec, experts.plan);
  const groups = groupTokens(routing, experts.slots.length);
  const wanted = new Set(tap?.fields);
  const expertOutputs = wanted.has("expertOutputs") || wanted.has("expertNorms") || wanted.has("output");
  const { topK } = routing;
  const slots = graphSlots(groups.used.length);
  const { result, expertOutputs: outputs } = await sessions.run(
    `moe ${JSON.stringify({ hidden, width, slots, topK, expertOutputs })}`,
    () => moeGraph({ hidden, width }, { slots, topK, expertOutputs }),
    { normed, residual, ...feedsOf(runtime, groups, topK, experts.slots, slots) },
  );
  if (tap) {
    const sorted = outputs?.data as Float32Array | undefined;
    const input = normed.data as Float32Array;
    reportLayer(tap, wanted, { layer, tokens, hidden, input, logits: values, routing, groups, sorted });
  }
  return result as Tensor;
}

/**
 * Slots of the graph for `used` experts. Up to eight each number has its own; beyond, eights share one, so that the
 * sessions of a model with 128 experts stay few.
 */
function graphSlots(used: number): number {
  return used <= 8 ? used : 8 * Math.ceil(used / 8);
}

function feedsOf(
  { Tensor }: Runtime,
  { used, sizes, rows, places, gates }: TokenGroups,
  topK: number,
  experts: readonly MlpWeights[],
  slots: number,
): Record<string, Tensor> {
  const feeds: Record<string, Tensor> = {
    rows: new Tensor("int32", rows, [rows.length]),
    places: new Tensor("int32", places, [topK, rows.length / topK]),
    gates: new Tensor("float32", gates, [topK, rows.length / topK, 1]),
    sizes: new Tensor(
      "int64",
      BigInt64Array.from({ length: slots }, (_, i) => BigInt(sizes[i] ?? 0)),
      [slots],
    ),
  };
  for (let i = 0; i < slots; i++) {
    // A slot without tokens computes nothing, with whatever weights.
    const { gate, up, down } = experts[used[i] ?? 0] as MlpWeights;
    feeds[`gate${i}`] = gate;
    feeds[`up${i}`] = up;
    feeds[`down${i}`] = down;
  }
  return feeds;
}
