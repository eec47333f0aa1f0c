import {
  CoppiceError,
  type DecoderLayer,
  type GroupedQueryAttentionSpec,
  type LatentAttentionSpec,
  type LinearSpec,
  type MlpSpec,
  type MoeModel,
  type NormSpec,
  type TensorRef,
} from "@coppice/core";
import {
  attentionShape,
  type GroupedQueryShape,
  type HeadLayout,
  headLayout,
  latentLayouts,
  layHeads,
  layNorm,
} from "@coppice/onnx";
import type { RowOrder } from "./matrix-contents.js";

/** A matrix of the checkpoint, or one part of several that a graph has one below the other. */
export interface MatrixPart {
  readonly weight: TensorRef;
  readonly bias?: TensorRef;
  /** Rows as the graph has them; absent: as they are. */
  readonly order?: RowOrder;
}

/** A vector of the checkpoint; without a tensor it is one of ones. */
export interface VectorPart {
  readonly ref?: TensorRef;
  /** Values as the graph has them; absent: as they are. */
  lay?(values: Float32Array): Float32Array;
}

/** What the names of one part of a decoder graph stand for. */
export interface NamedWeights {
  readonly matrices: Readonly<Record<string, readonly MatrixPart[]>>;
  readonly vectors: Readonly<Record<string, VectorPart>>;
}

/**
 * The weights of a layer but for its MLPs, by the names of `DecoderWeights.block`.
 * @param kvHeads KV heads in the order of the graph; absent: as they are
 */
export function blockWeights(
  layer: DecoderLayer,
  model: MoeModel,
  kvHeads?: readonly number[],
): NamedWeights {
  const { attention, attentionNorm, feedForwardNorm, feedForward } = layer;
  if (attention.kind === "other") {
    throw new CoppiceError("COPPICE_INTERNAL", `layer ${layer.index} has no attention that is described`);
  }
  const shape = attentionShape(layer, model.hiddenSize);
  const own =
    attention.kind === "gqa"
      ? groupedWeights(attention, headLayout(attention, shape as GroupedQueryShape), kvHeads)
      : latentWeights(attention);
  const moe = feedForward.kind === "moe" ? feedForward : undefined;
  return {
    matrices: {
      ...own.matrices,
      output: [attention.output],
      ...(moe && { router: [linearOf(moe.router)] }),
      ...(moe?.sharedGate && { sharedGate: [{ weight: moe.sharedGate }] }),
    },
    vectors: {
      ...own.vectors,
      ...normVectors("attentionNorm", attentionNorm),
      ...normVectors("feedForwardNorm", feedForwardNorm),
      ...(moe?.router.correction && { correction: { ref: moe.router.correction } }),
    },
  };
}

export function mlpWeights(spec: MlpSpec): NamedWeights {
  const part = (name: "gate" | "up" | "down"): MatrixPart[] => {
    const weight = spec[name];
    const bias = spec[`${name}Bias`];
    return weight ? [{ weight, ...(bias && { bias }) }] : [];
  };
  const [gate, up, down] = [part("gate"), part("up"), part("down")];
  return { matrices: { gate, up, down, gateUp: [...gate, ...up] }, vectors: {} };
}

export function headWeights({ finalNorm, head, headBias }: MoeModel): NamedWeights {
  return {
    matrices: { head: [{ weight: head, ...(headBias && { bias: headBias }) }] },
    vectors: normVectors("norm", finalNorm),
  };
}

function groupedWeights(
  attention: GroupedQueryAttentionSpec,
  layout: HeadLayout,
  order: readonly number[] | undefined,
): NamedWeights {
  const { query, key, value, queryNorm, keyNorm, sinks, heads, kvHeads, headDim } = attention;
  const move: MoveHeads | undefined = order && ((values) => moveHeads(values, order));
  const turned = (linear: LinearSpec, count: number) =>
    withOrder(linear, rowOrder(layout, count, headDim, move));
  // Values do not rotate: their heads are only filled up, and stay as the output map has them.
  const filled = withOrder(value, rowOrder(filledLayout(layout, headDim), kvHeads, headDim, move));
  const headNorm = (name: string, spec: GroupedQueryAttentionSpec["queryNorm"]) => {
    const moved = (values: Float32Array) => (spec?.over === "projection" && move ? move(values) : values);
    return (
      spec &&
      normVectors(name, spec, {
        weight: (values) => moved(layNorm(values, layout)),
        bias: (values) => moved(layHeads(values, layout, 1)),
      })
    );
  };
  return {
    matrices: { qkv: [turned(query, heads), turned(key, kvHeads), filled] },
    vectors: {
      ...headNorm("queryNorm", queryNorm),
      ...headNorm("keyNorm", keyNorm),
      ...(sinks && { sinks: { ref: sinks, ...(move && { lay: move }) } }),
    },
  };
}

type MoveHeads = (values: Float32Array) => Float32Array;

/** What belongs to KV heads, or to the query heads of each, in another order. */
function moveHeads(values: Float32Array, order: readonly number[]): Float32Array {
  const out = new Float32Array(values.length);
  const width = values.length / order.length;
  for (const [place, head] of order.entries()) {
    out.set(values.subarray(head * width, (head + 1) * width), place * width);
  }
  return out;
}

function latentWeights(attention: LatentAttentionSpec): NamedWeights {
  const { query, queryDown, queryNorm, kvDown, kvNorm, kvUp, heads, rank, nopeDim, rotary } = attention;
  const layouts = latentLayouts(attention);
  const queryDim = nopeDim + rotary.dimensions;
  return {
    matrices: {
      ...(queryDown && { queryDown: [queryDown] }),
      query: [withOrder(query, rowOrder(layouts.query, heads, queryDim))],
      kvDown: [withOrder(kvDown, rowOrder(layouts.kvDown, 1, rank + rotary.dimensions))],
      kvUp: [kvUp],
    },
    vectors: { ...(queryNorm && normVectors("queryNorm", queryNorm)), ...normVectors("kvNorm", kvNorm) },
  };
}

function linearOf({ weight, bias }: LinearSpec): LinearSpec {
  return { weight, ...(bias && { bias }) };
}

function withOrder(linear: LinearSpec, order: RowOrder | undefined): MatrixPart {
  return order ? { ...linear, order } : linear;
}

/** Heads that are only filled up to the size of a layout. */
function filledLayout({ size }: HeadLayout, headDim: number): HeadLayout {
  if (size === headDim) return { size, rotary: 0 };
  return { size, rotary: 0, places: Int32Array.from({ length: headDim }, (_, i) => i) };
}

/** Undefined when rows stay where they are. */
function rowOrder(
  layout: HeadLayout,
  heads: number,
  headDim: number,
  move?: MoveHeads,
): RowOrder | undefined {
  if (!layout.places && !move) return undefined;
  // Counted from 1, so that 0 is what is filled in; exact, as no matrix has 2^24 rows.
  const rows = layHeads(
    Float32Array.from({ length: heads * headDim }, (_, row) => row + 1),
    layout,
    1,
  );
  return Int32Array.from(move ? move(rows) : rows, (row) => row - 1);
}

function normVectors(
  name: string,
  { weight, bias }: NormSpec,
  lay: { weight?: VectorPart["lay"]; bias?: VectorPart["lay"] } = {},
): Record<string, VectorPart> {
  return {
    [name]: { ...(weight && { ref: weight }), ...(lay.weight && { lay: lay.weight }) },
    ...(bias && { [`${name}Bias`]: { ref: bias, ...(lay.bias && { lay: lay.bias }) } }),
  };
}
