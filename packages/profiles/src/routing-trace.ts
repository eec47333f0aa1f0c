import { expertBytes } from "@coppice/allocate";
import { CoppiceError, type MoeModel, moeLayers, storedBytes } from "@coppice/core";
import { bytesWithoutExperts } from "./profile-plan.js";

/** Stands in a trace where a choice ran no expert: it was skipped, or had a gate weight of 0. */
export const noExpert = 0xffff;

/** Which experts one MoE layer ran. */
export interface TraceLayer {
  readonly layer: number;
  /** E */
  readonly experts: number;
  /** k */
  readonly topK: number;
  /** Bytes of one expert as it is stored. */
  readonly expertBytes: number;
  /** [tokens, k], experts of the whole model, best first, or `noExpert`. */
  readonly routes: Uint16Array;
}

/** Tokens of one sequence: first those that are read at once, then those that are read one by one. */
export interface TraceSequence {
  readonly prefill: number;
  readonly decode: number;
}

/** What the routers chose, token by token. */
export interface RoutingTrace {
  /** Fingerprint of the whole model. */
  readonly model: string;
  /** What it was recorded on, for people. */
  readonly name: string;
  /** True when it was recorded under a plan, so that it shows only what is left of the choices of the whole model. */
  readonly planned?: boolean;
  /** Bytes of all weights that are no routed experts. */
  readonly otherBytes: number;
  /** Of these, those that every token reads: all but the table of embeddings. */
  readonly tokenBytes: number;
  /** The tokens of all layers stand in this order. */
  readonly sequences: readonly TraceSequence[];
  readonly layers: readonly TraceLayer[];
}

/** What a trace says of a model, before anything is recorded. */
export function traceHeader(model: MoeModel): Pick<RoutingTrace, "model" | "otherBytes" | "tokenBytes"> & {
  layers: Omit<TraceLayer, "topK" | "routes">[];
} {
  const otherBytes = bytesWithoutExperts(model);
  return {
    model: model.fingerprint,
    otherBytes,
    tokenBytes: otherBytes - (model.tied ? 0 : storedBytes(model.embedding)),
    layers: moeLayers(model).map((layer) => ({
      layer: layer.index,
      experts: layer.feedForward.experts.length,
      expertBytes: expertBytes(layer),
    })),
  };
}

/** Tokens of both phases over all sequences. */
export function traceTokens({ sequences }: Pick<RoutingTrace, "sequences">): TraceSequence {
  return {
    prefill: sequences.reduce((sum, { prefill }) => sum + prefill, 0),
    decode: sequences.reduce((sum, { decode }) => sum + decode, 0),
  };
}

/** The sequences from `begin` to before `end` as a trace of their own. */
export function sliceTrace(trace: RoutingTrace, begin: number, end: number): RoutingTrace {
  const { sequences } = trace;
  const count = (part: readonly TraceSequence[]) =>
    part.reduce((sum, { prefill, decode }) => sum + prefill + decode, 0);
  const from = count(sequences.slice(0, begin));
  const to = from + count(sequences.slice(begin, end));
  return {
    ...trace,
    sequences: sequences.slice(begin, end),
    layers: trace.layers.map((layer) => ({
      ...layer,
      routes: layer.routes.subarray(from * layer.topK, to * layer.topK),
    })),
  };
}

/** @throws COPPICE_PROFILE_MODEL when the trace is of another model */
export function checkTraceModel({ model }: Pick<RoutingTrace, "model">, fingerprint: string): void {
  if (model === fingerprint) return;
  throw new CoppiceError(
    "COPPICE_PROFILE_MODEL",
    `the trace is of a model with fingerprint "${model}", expected "${fingerprint}"`,
    { hint: "record a trace of this model" },
  );
}
