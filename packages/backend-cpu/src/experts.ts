import { type MoeSpec, type Routing, routeTokens, skipRuleOf, type Tap, throwIfAborted } from "@coppice/core";
import { type MlpShape, type MoeGraphOptions, moeGraph } from "@coppice/onnx";
import type { Tensor } from "onnxruntime-node";
import { everyParts, runEvery } from "./every-expert.js";
import type { FedForward } from "./feed-forward.js";
import { groupTokens, type TokenGroups } from "./group-tokens.js";
import type { UnitMemory } from "./layer-memory.js";
import type { PlannedExperts } from "./planned-layers.js";
import { rememberedOutputs } from "./remembered-outputs.js";
import type { Runtime, Sessions } from "./sessions.js";
import { reportLayer } from "./tap.js";
import type { MlpWeights } from "./weights.js";

export interface ExpertsRequest {
  readonly layer: number;
  readonly spec: MoeSpec;
  readonly experts: PlannedExperts;
  /** The experts of the model. */
  readonly originals: readonly MlpWeights[];
  readonly shape: MlpShape;
  readonly residualScale: number | undefined;
  /** Input of the block, [N, hidden]. */
  readonly normed: Tensor;
  /** The residual stream before the block, [N, hidden]. */
  readonly stream: Tensor;
  /** What the experts are added to, [N, hidden]: the stream, and the shared expert where there is one. */
  readonly residual: Tensor;
  readonly logits: Tensor;
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

/**
 * Routes and runs the experts of one layer. Routing happens here and not in the graph: core defines it for every
 * backend, router maps and taps need it, and it takes some two hundredths of the experts' time.
 */
export async function runExperts(
  runtime: Runtime,
  sessions: Sessions,
  request: ExpertsRequest,
): Promise<FedForward> {
  const { spec, experts, normed, logits, spared, tap, everyBytes, signal } = request;
  const [tokens = 0, hidden = 0] = normed.dims;
  const routing = routeTokens(logits.data as Float32Array, tokens, spec.router, { ...experts, spared });
  const ends = tap ? everyParts({ ...request, tap }, everyBytes) : [];
  if (ends.length <= 1) return runRouted(runtime, sessions, request, routing);
  const results = new Float32Array(tokens * hidden);
  let [from, expertTokens] = [0, 0];
  for (const to of ends) {
    throwIfAborted(signal, "running all experts");
    const part = await runRouted(runtime, sessions, ...rowsOf(runtime, request, routing, from, to));
    results.set(part.result.data as Float32Array, from * hidden);
    expertTokens += part.expertTokens;
    from = to;
  }
  return { result: new runtime.Tensor("float32", results, [tokens, hidden]), expertTokens };
}

/** Some rows of a request. */
function rowsOf(
  { Tensor }: Runtime,
  request: ExpertsRequest,
  { topK, slots, gates }: Routing,
  from: number,
  to: number,
): [ExpertsRequest, Routing] {
  const cut = ({ data, dims }: Tensor) => {
    const size = dims[1] as number;
    return new Tensor("float32", (data as Float32Array).subarray(from * size, to * size), [to - from, size]);
  };
  const { normed, stream, residual, logits, places } = request;
  const some = { normed: cut(normed), stream: cut(stream), residual: cut(residual), logits: cut(logits) };
  return [
    { ...request, ...some, places: places.subarray(from, to) },
    { topK, slots: slots.subarray(from * topK, to * topK), gates: gates.subarray(from * topK, to * topK) },
  ];
}

async function runRouted(
  runtime: Runtime,
  sessions: Sessions,
  request: ExpertsRequest,
  routing: Routing,
): Promise<FedForward> {
  const { layer, spec, experts, shape, residualScale, normed, stream, residual, logits, tap, places } =
    request;
  const [tokens = 0, hidden = 0] = normed.dims;
  const remembered = request.memory && rememberedOutputs(request.memory, request);
  const groups = groupTokens(routing, experts.slots.length, {
    // With a cache one row alone is the rule, and no memory takes part.
    company: !request.cached && tokens > 1,
    ...(remembered && { isKnown: remembered.isKnown }),
  });
  const wanted = new Set(tap?.fields);
  const expertOutputs =
    outputFields.some((field) => wanted.has(field)) || (remembered?.isWorthKeeping(groups) ?? false);
  const { topK } = routing;
  const { scalesInput } = spec.router;
  const options = {
    slots: graphSlots(groups.used.length),
    topK,
    expertOutputs,
    ...(wanted.has("expertNorms") && { expertNorms: true as const }),
    ...(scalesInput && { scalesInput }),
    ...(residualScale !== undefined && { residualScale }),
    ...(skipRuleOf(spec.router, experts.plan) && { skips: true as const }),
    ...(groups.known.length > 0 && { known: true as const }),
  };
  const {
    result,
    expertOutputs: outputs,
    expertNorms: norms,
  } = await sessions.run(`moe ${JSON.stringify({ ...shape, ...options })}`, () => moeGraph(shape, options), {
    normed,
    residual,
    ...feedsOf(runtime, groups, experts.slots, options),
    ...(remembered && groups.known.length > 0 && { known: remembered.known(runtime, groups, routing) }),
  });
  if (outputs) remembered?.keep(groups, outputs.data as Float32Array);
  if (tap) {
    reportLayer(tap, wanted, {
      layer,
      tokens,
      hidden,
      rows: places,
      residual: stream.data as Float32Array,
      input: normed.data as Float32Array,
      logits: logits.data as Float32Array,
      routing,
      scalesInput: scalesInput === true,
      groups,
      sorted: outputs?.data as Float32Array | undefined,
      sortedNorms: norms?.data as Float32Array | undefined,
      every: await runEvery(runtime, sessions, { ...request, tap }),
    });
  }
  return { result: result as Tensor, expertTokens: groups.runs };
}

/** Fields of a tap that are made here of unweighted expert outputs; copying these out takes a tenth of a run. */
const outputFields = ["expertOutputs", "expertPeaks", "output"] as const;

/**
 * Slots of the graph for `used` experts. Up to eight each number has its own; beyond, eights share one, so that the
 * sessions of a model with 128 experts stay few.
 */
function graphSlots(used: number): number {
  // A graph without slots is none, and where all outputs are known there is nothing to run.
  return used <= 8 ? Math.max(1, used) : 8 * Math.ceil(used / 8);
}

function feedsOf(
  { Tensor }: Runtime,
  { used, sizes, rows, places, gates }: TokenGroups,
  experts: readonly MlpWeights[],
  { slots, topK, scalesInput }: MoeGraphOptions,
): Record<string, Tensor> {
  const feeds: Record<string, Tensor> = {
    rows: new Tensor("int32", rows, [rows.length]),
    places: new Tensor("int32", places, [topK, places.length / topK]),
    gates: scalesInput
      ? new Tensor("float32", inOrderOfRows(gates, places, rows.length), [rows.length, 1])
      : new Tensor("float32", gates, [topK, places.length / topK, 1]),
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

function inOrderOfRows(gates: Float32Array, places: Int32Array, rows: number): Float32Array {
  const sorted = new Float32Array(rows);
  for (const [choice, place] of places.entries()) if (place < rows) sorted[place] = gates[choice] as number;
  return sorted;
}
