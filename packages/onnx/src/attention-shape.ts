import {
  type AttentionSpec,
  CoppiceError,
  type DecoderLayer,
  type GroupedQueryAttentionSpec,
  type HeadNormSpec,
  type LatentAttentionSpec,
} from "@coppice/core";
import { type NormShape, normShape } from "./norms.js";

/** What the graphs of both kinds of attention depend on. */
interface AttentionShapeBase {
  readonly hidden: number;
  readonly heads: number;
  /** Factor on q·k before softmax. */
  readonly scale: number;
  /** Keys that a query sees, itself included; absent: all before it. */
  readonly window?: number;
  readonly outputBias: boolean;
  readonly attentionNorm: NormShape;
  readonly feedForwardNorm: NormShape;
  /** Present when a router follows, whose logits the graph gives as well. */
  readonly router?: { readonly bias: boolean };
}

export interface HeadNormShape extends NormShape {
  readonly over: "head" | "projection";
}

export interface GroupedQueryShape extends AttentionShapeBase {
  readonly kind: "gqa";
  readonly kvHeads: number;
  readonly headDim: number;
  readonly inputBias: boolean;
  readonly queryNorm?: HeadNormShape;
  readonly keyNorm?: HeadNormShape;
  readonly clip?: number;
  /** First dimensions of each head that rotate, i with i + rotaryDimensions / 2; 0: positions do not rotate. */
  readonly rotaryDimensions: number;
  /** Where they rotate: in the attention operator, or before it, row by row. */
  readonly rotation: "operator" | "rows";
  /** The order is clip, rotation, norms; otherwise norms, clip, rotation. */
  readonly normAfterRotary: boolean;
  /** Queries are multiplied by a factor of their position. */
  readonly temperature: boolean;
  readonly sinks: boolean;
}

export interface LatentShape extends AttentionShapeBase {
  readonly kind: "mla";
  readonly nopeDim: number;
  readonly rotaryDimensions: number;
  readonly valueDim: number;
  readonly rank: number;
  readonly kvNorm: NormShape;
  /** Present when queries come from a low rank. */
  readonly queryDown?: { readonly rank: number; readonly bias: boolean };
  readonly queryNorm?: NormShape;
  readonly queryBias: boolean;
  readonly kvDownBias: boolean;
  readonly kvUpBias: boolean;
}

/** All that an attention graph depends on; layers with equal shapes share one graph. Plain data. */
export type AttentionShape = GroupedQueryShape | LatentShape;

/**
 * The shape of a decoder layer's attention.
 * @throws COPPICE_BACKEND_UNSUPPORTED for a token mixer that is not described
 */
export function attentionShape(layer: DecoderLayer, hidden: number): AttentionShape {
  const { attention, attentionNorm, feedForward, feedForwardNorm, index } = layer;
  if (attention.kind === "other") throw notDescribed(index, attention);
  const { heads, scale, slidingWindow, output } = attention;
  const base = {
    hidden,
    heads,
    scale,
    ...(slidingWindow !== undefined && { window: slidingWindow }),
    outputBias: output.bias !== undefined,
    attentionNorm: normShape(attentionNorm),
    feedForwardNorm: normShape(feedForwardNorm),
    ...(feedForward.kind === "moe" && { router: { bias: feedForward.router.bias !== undefined } }),
  };
  return attention.kind === "gqa"
    ? { ...base, ...groupedQueryShape(attention) }
    : { ...base, ...latentShape(attention) };
}

/** Heads of keys and values, and the dimensions that a head has in the attention operator and in its cache. */
export function operatorHeads(shape: AttentionShape): { readonly kvHeads: number; readonly size: number } {
  if (shape.kind === "mla") {
    const { heads, nopeDim, rotaryDimensions, valueDim } = shape;
    return { kvHeads: heads, size: roundUp(Math.max(nopeDim + rotaryDimensions, valueDim)) };
  }
  const { kvHeads, headDim, rotation } = shape;
  return { kvHeads, size: rotation === "operator" ? headDim : roundUp(headDim) };
}

type Own<T extends AttentionShape> = Omit<T, keyof AttentionShapeBase>;

function groupedQueryShape(attention: GroupedQueryAttentionSpec): Own<GroupedQueryShape> {
  const { kvHeads, headDim, rotary, clip, queryNorm, keyNorm, query, key, value } = attention;
  return {
    kind: "gqa",
    kvHeads,
    headDim,
    inputBias: [query, key, value].some((linear) => linear.bias !== undefined),
    ...(queryNorm && { queryNorm: headNormShape(queryNorm) }),
    ...(keyNorm && { keyNorm: headNormShape(keyNorm) }),
    ...(clip !== undefined && { clip }),
    rotaryDimensions: rotary?.dimensions ?? 0,
    rotation: rotatesInOperator(attention) ? "operator" : "rows",
    normAfterRotary: attention.normAfterRotary === true,
    temperature: attention.temperature !== undefined,
    sinks: attention.sinks !== undefined,
  };
}

/** The operator rotates last, and heads that are filled up for it take no norm that subtracts a mean. */
function rotatesInOperator({
  rotary,
  normAfterRotary,
  queryNorm,
  keyNorm,
}: GroupedQueryAttentionSpec): boolean {
  const norms = [queryNorm, keyNorm].filter((norm) => norm !== undefined);
  if (!rotary || (normAfterRotary && norms.length > 0)) return false;
  return norms.every(({ kind, bias }) => kind === "rms" && bias === undefined);
}

function headNormShape(spec: HeadNormSpec): HeadNormShape {
  return { ...normShape(spec), over: spec.over };
}

function latentShape(attention: LatentAttentionSpec): Own<LatentShape> {
  const { nopeDim, rotary, valueDim, rank, query, queryDown, queryNorm, kvDown, kvNorm, kvUp } = attention;
  return {
    kind: "mla",
    nopeDim,
    rotaryDimensions: rotary.dimensions,
    valueDim,
    rank,
    kvNorm: normShape(kvNorm),
    ...(queryDown && {
      queryDown: { rank: queryDown.weight.shape[0] as number, bias: queryDown.bias !== undefined },
    }),
    ...(queryNorm && { queryNorm: normShape(queryNorm) }),
    queryBias: query.bias !== undefined,
    kvDownBias: kvDown.bias !== undefined,
    kvUpBias: kvUp.bias !== undefined,
  };
}

/** ONNX Runtime's attention operator takes head sizes that are multiples of 8 (of 16 where it rotates them). */
function roundUp(size: number): number {
  return 8 * Math.ceil(size / 8);
}

function notDescribed(layer: number, attention: Extract<AttentionSpec, { kind: "other" }>): CoppiceError {
  return new CoppiceError(
    "COPPICE_BACKEND_UNSUPPORTED",
    `layer ${layer} mixes tokens with ${attention.name}, which has no graph; attention of the kinds gqa and mla has`,
    { details: { layer, found: attention.name } },
  );
}
