import { type MoeSpec, routeTokens, type Tap } from "@coppice/core";
import { type MlpShape, type MoeGraphOptions, moeGraph } from "@coppice/onnx";
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
  readonly shape: MlpShape;
  readonly residualScale: number | undefined;
  /** Input of the block, [N, hidden]. */
  readonly normed: Tensor;
  /** The residual stream before the block, [N, hidden]. */
  readonly stream: Tensor;
  /** What the experts are added to, [N, hidden]: the stream, and the shared expert where there is one. */
  readonly residual: Tensor;
  readonly logits: Tensor;
  readonly tap: Tap | undefined;
  /** [N], place of each row in the packed order of the request; read by the tap alone. */
  readonly places: Int32Array;
}

/**
 * Routes and runs the experts of one layer. Routing happens here and not in the graph: core defines it for every
 * backend, router maps and taps need it, and it takes some two hundredths of the experts' time.
 */
export async function runExperts(
  runtime: Runtime,
  sessions: Sessions,
  {
    layer,
    spec,
    experts,
    shape,
    residualScale,
    normed,
    stream,
    residual,
    logits,
    tap,
    places,
  }: ExpertsRequest,
): Promise<Tensor> {
  const [tokens = 0, hidden = 0] = normed.dims;
  const values = logits.data as Float32Array;
  const routing = routeTokens(values, tokens, spec.router, experts);
  const groups = groupTokens(routing, experts.slots.length);
  const wanted = new Set(tap?.fields);
  const expertOutputs = outputFields.some((field) => wanted.has(field));
  const { topK } = routing;
  const { scalesInput } = spec.router;
  const options = {
    slots: graphSlots(groups.used.length),
    topK,
    expertOutputs,
    ...(scalesInput && { scalesInput }),
    ...(residualScale !== undefined && { residualScale }),
  };
  const { result, expertOutputs: outputs } = await sessions.run(
    `moe ${JSON.stringify({ ...shape, ...options })}`,
    () => moeGraph(shape, options),
    { normed, residual, ...feedsOf(runtime, groups, experts.slots, options) },
  );
  if (tap) {
    const sorted = outputs?.data as Float32Array | undefined;
    const input = normed.data as Float32Array;
    const before = stream.data as Float32Array;
    const seen = {
      layer,
      tokens,
      hidden,
      rows: places,
      residual: before,
      input,
      logits: values,
      routing,
      groups,
      sorted,
    };
    reportLayer(tap, wanted, { ...seen, scalesInput: scalesInput === true });
  }
  return result as Tensor;
}

/** Fields of a tap that are made of unweighted expert outputs. */
const outputFields = ["expertOutputs", "expertNorms", "expertPeaks", "output"] as const;

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
  experts: readonly MlpWeights[],
  { slots, topK, scalesInput }: MoeGraphOptions,
): Record<string, Tensor> {
  const feeds: Record<string, Tensor> = {
    rows: new Tensor("int32", rows, [rows.length]),
    places: new Tensor("int32", places, [topK, rows.length / topK]),
    gates: scalesInput
      ? new Tensor("float32", inOrderOfRows(gates, places), [rows.length, 1])
      : new Tensor("float32", gates, [topK, rows.length / topK, 1]),
    sizes: new Tensor(
      "int64",
      BigInt64Array.from({ length: slots }, (_, i) => BigInt(sizes[i] ?? 0)),
      [slots],
    ),
  };
  for (let i = 0; i < slots; i++) {
    // A slot without tokens computes nothing, with whatever weights.
    const weights = experts[used[i] ?? 0] as MlpWeights;
    for (const [part, tensor] of Object.entries(weights)) feeds[`${part}${i}`] = tensor;
  }
  return feeds;
}

function inOrderOfRows(gates: Float32Array, places: Int32Array): Float32Array {
  const sorted = new Float32Array(gates.length);
  for (const [choice, place] of places.entries()) sorted[place] = gates[choice] as number;
  return sorted;
}
