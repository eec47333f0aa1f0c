import { type HeadSpan, type RotarySpec, rotaryFrequencies } from "@coppice/core";
import { decoderDims, hiddenScore } from "./decoder-dims.js";
import type { GraphBuilder, Value } from "./graph-builder.js";
import { type HeldPast, heldPasts } from "./held-past.js";
import { dataTypes } from "./model-file.js";
import { type OneToken, oneToken } from "./one-token.js";

/** What all layers of a decoder graph use. */
export interface DecoderInputs {
  /** int64 [B S] */
  readonly ids: Value;
  /** int32 [B], past and present tokens of each sequence less one, as the attention operator counts them. */
  readonly lengths: Value;
  /** int32 [], the tokens of the longest sequence, padding included. */
  readonly total: Value;
  /** [B, 1, S, T], what hides padding where that may stand anywhere; `""`: it stands behind the tokens. */
  readonly mask: Value;
  /** What attention takes where heads have the span of this index. */
  held(span: number): HeldPast;
  /** What a run of one token takes, where such runs have attention of their own. */
  readonly oneToken: OneToken | undefined;
  /** int64 [3], the shape of `tokens`. */
  tokenShape(width: number): Value;
  /** Rows [B S, width] as [B, S, width]. */
  tokens(rows: Value, width: number): Value;
  /** Of [B S, width] the rows of the last tokens of each sequence, as many as logits are wanted: [R, width]. */
  last(rows: Value, width: number): Value;
  /**
   * Of keys or values [B, heads, places, size] those of the new tokens, [B, heads, S, size]; where padding may stand anywhere, or there is none.
   * @param span which the heads have; undefined: they see everything
   */
  newest(values: Value, span: number | undefined): Value;
  /** int64 [1] each, where what is new begins and ends there. */
  newestPlaces(span: number | undefined): readonly [Value, Value];
  /** Rows as [B, R / B, width], of type int32 or float32. */
  perSequence(rows: Value, width: number, name: string): Value;
  /** Cosines and sines of every position that there can be, [M, dimensions / 2]. */
  tables(rotary: RotarySpec, dimensions: number): readonly [Value, Value];
  /** The same of every row, [B S, 1, dimensions / 2]. */
  rowTables(rotary: RotarySpec, dimensions: number): readonly [Value, Value];
}

export interface DecoderInputOptions {
  /** M, the longest text. */
  readonly positions: number;
  readonly padding: PaddingPlace;
  /** Spans that heads have; with any, `padding` is `behind`. */
  readonly spans?: readonly HeadSpan[];
  /** Give runs of one token attention of their own. */
  readonly oneToken?: boolean;
}

/**
 * Where padding may stand in a batch of sequences of different lengths: `anywhere`, such as before the tokens, where
 * transformers.js puts it, at the cost of a mask that is added to all scores (3 % of a prompt of 512 tokens); or `behind` them.
 */
export type PaddingPlace = "anywhere" | "behind";

export function decoderInputs(graph: GraphBuilder, options: DecoderInputOptions): DecoderInputs {
  const { positions, padding, spans = [] } = options;
  const { batch, sequence, total } = decoderDims;
  const inputIds = graph.input("input_ids", [batch, sequence], "int64");
  const mask = graph.input("attention_mask", [batch, total], "int64");
  const keep = graph.input("num_logits_to_keep", [], "int64");
  const cast = (value: Value, type: "int32" | "float32") =>
    graph.node("Cast", [value], { attributes: { to: dataTypes[type] } });
  const size = (value: Value, axis: number) =>
    graph.node("Shape", [value], { attributes: { start: axis, end: axis + 1 } });
  const scalar = (value: Value) => graph.node("Squeeze", [value]);
  const all = scalar(size(mask, 1));
  const [sequences, steps] = [size(inputIds, 0), size(inputIds, 1)];
  const seen =
    padding === "behind"
      ? graph.node("ReduceSum", [mask, graph.int64([1])], { attributes: { keepdims: 0 } })
      : graph.node("Expand", [all, sequences]);
  const shapes = new Map<string, Value>();
  const shapeOf = (middle: Value, width: number) => {
    const key = `${middle} ${width}`;
    const parts = [sequences, middle, graph.int64([width])];
    const shape = shapes.get(key) ?? graph.node("Concat", parts, { attributes: { axis: 0 } });
    shapes.set(key, shape);
    return shape;
  };
  const shaped = (rows: Value, middle: Value, width: number) =>
    graph.node("Reshape", [rows, shapeOf(middle, width)]);
  const tokens = (rows: Value, width: number) => shaped(rows, steps, width);
  const wanted = options.oneToken ? graph.node("Abs", [keep]) : keep;
  const first = graph.node("Reshape", [graph.node("Neg", [wanted]), graph.int64([1])]);
  const known = new Map<string, readonly [Value, Value]>();
  const tables = (rotary: RotarySpec, dimensions: number) => {
    const key = JSON.stringify([rotary, dimensions]);
    const made = known.get(key) ?? rotaryTables(graph, rotary, dimensions, positions);
    known.set(key, made);
    return made;
  };
  const pasts = heldPasts(graph, spans, seen, steps);
  let rowPositions: Value | undefined;
  const newPlaces = new Map<number | undefined, readonly [Value, Value]>();
  const newestPlaces = (span: number | undefined) => {
    const end = span === undefined ? size(mask, 1) : pasts.held(span).end;
    const places = newPlaces.get(span) ?? ([graph.node("Sub", [end, steps]), end] as const);
    newPlaces.set(span, places);
    return places;
  };
  let scores: Value | undefined;
  return {
    ids: graph.node("Reshape", [inputIds, graph.int64([-1])]),
    lengths: cast(graph.node("Sub", [seen, graph.int64([1], [])]), "int32"),
    total: cast(all, "int32"),
    mask: padding === "behind" ? "" : hidePadding(),
    held: pasts.held,
    oneToken: options.oneToken
      ? oneToken(graph, {
          keep,
          held: (span) => newestPlaces(span)[0],
          scores: (span) => (span === undefined ? paddingScores() : pasts.held(span).mask),
        })
      : undefined,
    tokenShape: (width) => shapeOf(steps, width),
    tokens,
    last: (rows, width) => {
      // From -0 on, where all are wanted.
      const wanted = graph.node("Slice", [
        tokens(rows, width),
        first,
        graph.int64([2 ** 31]),
        graph.int64([1]),
      ]);
      return graph.node("Reshape", [wanted, graph.int64([-1, width])]);
    },
    newest: (values, span) => graph.node("Slice", [values, ...newestPlaces(span), graph.int64([2])]),
    newestPlaces,
    perSequence: (rows, width, name) => {
      graph.nodes("Identity", [shaped(rows, graph.int64([-1]), width)], [name]);
      return name;
    },
    tables,
    rowTables: (rotary, dimensions) => {
      rowPositions ??=
        spans.length > 0
          ? graph.node("Reshape", [pasts.positions(), graph.int64([-1])])
          : positionsOfRows(graph, all, sequences, steps);
      const rows = rowPositions;
      const [cos, sin] = tables(rotary, dimensions).map((table) => {
        const taken = graph.node("Gather", [table, rows], { attributes: { axis: 0 } });
        return graph.node("Unsqueeze", [taken, graph.int64([1])]);
      });
      return [cos as Value, sin as Value];
    },
  };

  /** [B, 1, 1, T] */
  function paddingScores(): Value {
    if (scores !== undefined) return scores;
    const padded = graph.node("Sub", [graph.float32(1), cast(mask, "float32")]);
    scores = graph.node("Unsqueeze", [
      graph.node("Mul", [padded, graph.float32(hiddenScore)]),
      graph.int64([1, 2]),
    ]);
    return scores;
  }

  function hidePadding(): Value {
    const one = graph.int64([1]);
    const shape = graph.node("Concat", [one, one, steps, one], { attributes: { axis: 0 } });
    return graph.node("Expand", [paddingScores(), shape]);
  }
}

/** int64 [B S]: the last S of the positions of a sequence, for every sequence. */
function positionsOfRows(graph: GraphBuilder, all: Value, sequences: Value, steps: Value): Value {
  const start = graph.node("Sub", [all, graph.node("Squeeze", [steps])]);
  const range = graph.node("Range", [start, all, graph.int64([1], [])]);
  const shape = graph.node("Concat", [sequences, steps], { attributes: { axis: 0 } });
  return graph.node("Reshape", [graph.node("Expand", [range, shape]), graph.int64([-1])]);
}

/**
 * Tables of all positions, as a computation from constants that ONNX Runtime does once, when it loads the graph: they would
 * be megabytes of the file. Angles are rounded to float32 as reference implementations do.
 */
function rotaryTables(
  graph: GraphBuilder,
  rotary: RotarySpec,
  dimensions: number,
  positions: number,
): readonly [Value, Value] {
  const { frequencies, factor } = rotaryFrequencies(rotary, positions);
  const half = new Float32Array(dimensions / 2);
  half.set(frequencies);
  const range = graph.node("Range", [graph.float32(0), graph.float32(positions), graph.float32(1)]);
  const column = graph.node("Reshape", [range, graph.int64([-1, 1])]);
  const row = graph.weight(graph.name("frequencies"), [1, half.length], half);
  const angles = graph.node("Mul", [column, row]);
  const table = (operator: "Cos" | "Sin") => {
    const values = graph.node(operator, [angles]);
    return factor === 1 ? values : graph.node("Mul", [values, graph.float32(factor)]);
  };
  return [table("Cos"), table("Sin")];
}
