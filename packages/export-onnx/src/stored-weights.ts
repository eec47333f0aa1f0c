import type { Content } from "@coppice/checkpoint";
import { CoppiceError, type MoeModel, type TensorRef, type WeightReader } from "@coppice/core";
import {
  asFloat32,
  type DecoderWeights,
  type ElementType,
  type GraphBuilder,
  gemm,
  groupedHeads,
  type LinearOptions,
  type PartWeights,
  type QuantizedShape,
  type QuantizedValues,
  quantizedLinear,
  quantizedRows,
  type SpanLayout,
  type Value,
} from "@coppice/onnx";
import type { ExternalFiles } from "./external-files.js";
import { madeContent } from "./made-content.js";
import {
  floatBytes,
  floatContents,
  type PackedForm,
  packedForm,
  quantizedContents,
} from "./matrix-contents.js";
import type { TargetForms } from "./targets.js";
import {
  blockWeights,
  headWeights,
  type MatrixPart,
  mlpWeights,
  type NamedWeights,
  type VectorPart,
} from "./weight-names.js";

export interface StoredWeightsOptions
  extends Pick<TargetForms, "halfEmbedding" | "rowPrecision" | "int8Groups"> {
  readonly model: MoeModel;
  readonly weights: WeightReader;
  readonly files: ExternalFiles;
  /** How far heads see; absent: as the model is. */
  readonly spans?: SpanLayout;
}

/**
 * The weights of a decoder graph as tensors of external files: packed codes as they are, for MatMulNBits; all else as
 * float32. Nothing is read before the files are written.
 */
export function storedWeights(graph: GraphBuilder, options: StoredWeightsOptions): DecoderWeights {
  const { model, weights, files, spans, halfEmbedding, rowPrecision, int8Groups } = options;
  const { embedding, tied } = model;
  const store = (
    name: string,
    shape: readonly number[],
    type: ElementType,
    contents: readonly Content[],
    place = name,
  ) => graph.stored(name, shape, type, files.place(place, contents));
  /** The one matrix that a graph may use twice, for tokens that go in and out. */
  const isEmbedding = (parts: readonly MatrixPart[]) => tied && parts[0]?.weight.name === embedding.name;

  return {
    embed: (ids) => {
      const form = packedForm(embedding);
      if (form) {
        const { rows, columns, values } = packed("embedding", [{ weight: embedding }], form, "rows");
        return quantizedRows(graph, ids, values, { ...form, rows, columns });
      }
      const half = halfEmbedding && !tied && halfType(embedding);
      const table = half
        ? store("embedding", embedding.shape, half.type, floatContents(weights, embedding, half.dtype))
        : floats("embedding", [{ weight: embedding }]);
      const rows = graph.node("Gather", [table, ids], { attributes: { axis: 0 } });
      return half ? asFloat32(graph, rows) : rows;
    },
    block: (layer) => {
      const order = groupedHeads(spans?.layers[layer.index]);
      return part(blockWeights(layer, model, order), `layers.${layer.index}`);
    },
    mlp: (spec, name) => part(mlpWeights(spec), name),
    head: part(headWeights(model), "head"),
  };

  function part({ matrices, vectors }: NamedWeights, prefix: string): PartWeights {
    return {
      vector: (name, size) => vector(`${prefix}.${name}`, vectors[name], size as number),
      linear(rows, name, _shape, linearOptions = {}) {
        const parts = matrices[name];
        if (!parts) throw new CoppiceError("COPPICE_INTERNAL", `${prefix} has no matrix ${name}`);
        return linear(rows, prefix === name ? name : `${prefix}.${name}`, parts, linearOptions);
      },
    };
  }

  function vector(name: string, part: VectorPart | undefined, size: number): Value {
    if (!part) throw new CoppiceError("COPPICE_INTERNAL", `there is no vector ${name}`);
    const { ref, lay = (values) => values } = part;
    const content = madeContent(4 * size, async (signal) => {
      const values = ref ? await weights.read(ref, signal ? { signal } : {}) : new Float32Array(size).fill(1);
      return floatBytes(lay(values), "F32");
    });
    return store(name, [size], "float32", [content]);
  }

  function linear(rows: Value, name: string, parts: readonly MatrixPart[], options: LinearOptions): Value {
    const forms = parts.map(({ weight }) => packedForm(weight));
    const [form] = forms;
    if (forms.some((other) => !sameForm(form, other))) {
      // Parts that are stored differently run one by one, side by side in the result.
      const outputs = parts.map((one, i) =>
        linear(rows, `${name}.${i}`, [one], { ...options, output: graph.name(name) }),
      );
      return graph.node("Concat", outputs, { attributes: { axis: 1 } }, options.output);
    }
    const bias = options.bias ? stackedBias(`${name}.bias`, parts) : undefined;
    if (form) {
      const precision = rowPrecision(form.bits, form.groupSize);
      const most = precision === "int8" ? int8Groups[form.bits] : form.groupSize;
      const run = { ...form, groupSize: Math.min(form.groupSize, most) };
      const { rows: N, columns, values } = packed(name, parts, run, "groups");
      const shape = { ...run, rows: N, columns };
      return quantizedLinear(graph, rows, values, shape, precision, bias, options);
    }
    const matrix = isEmbedding(parts) ? "embedding" : floats(name, parts);
    const inputs = bias === undefined ? [rows, matrix] : [rows, matrix, bias];
    return gemm(graph, inputs, options.scale, options.output);
  }

  function floats(name: string, parts: readonly MatrixPart[]): Value {
    const columns = parts[0]?.weight.shape[1] as number;
    const contents = parts.flatMap(({ weight, order }) => floatContents(weights, weight, "F32", order));
    return store(name, [heightOf(parts), columns], "float32", contents);
  }

  /** @param layout of the codes: [N, K / g, g bits / 8] or [N, K bits / 8] */
  function packed(
    name: string,
    parts: readonly MatrixPart[],
    form: PackedForm,
    layout: "groups" | "rows",
  ): Pick<QuantizedShape, "rows" | "columns"> & { values: QuantizedValues } {
    const rows = heightOf(parts);
    const columns = parts[0]?.weight.shape[1] as number;
    const { bits, groupSize, asymmetric } = form;
    const groups = columns / groupSize;
    const contents = parts.map(({ weight, order }) => quantizedContents(weights, weight, form, order));
    const codes = layout === "groups" ? [rows, groups, (groupSize * bits) / 8] : [rows, (columns * bits) / 8];
    const type = floatTypes[form.scales];
    const base = isEmbedding(parts) ? "embedding" : name;
    // Where a head runs in smaller groups than its embedding, only codes are the same.
    const isSplit = parts.some(({ weight }) => packedForm(weight)?.groupSize !== groupSize);
    const put = (
      key: "codes" | "scales" | "zeroPoints",
      shape: readonly number[],
      type: ElementType,
      as = isSplit ? `${name}.${key}` : `${base}.${key}`,
    ) => {
      if (graph.has(as)) return as;
      const all = contents.map((one) => one[key] as Content);
      return store(as, shape, type, all, isSplit && key !== "codes" ? as : `${base}.${key}`);
    };
    const values: QuantizedValues = {
      // Two operators may see the same bytes in two shapes.
      codes: put("codes", codes, "uint8", `${name}.codes`),
      scales: put("scales", [rows, groups], type),
      ...(asymmetric && { zeroPoints: put("zeroPoints", [rows, Math.ceil((groups * bits) / 8)], "uint8") }),
    };
    const scales = type === "float32" ? values.scales : asFloat32(graph, values.scales);
    return { rows, columns, values: { ...values, scales } };
  }

  /** [N], zeros where a part has none. */
  function stackedBias(name: string, parts: readonly MatrixPart[]): Value {
    const contents = parts.map(({ weight, bias, order }) => {
      const rows = weight.shape[0] as number;
      if (bias) return floatContents(weights, { ...bias, shape: [rows] }, "F32", order);
      const bytes = 4 * (order?.length ?? rows);
      return [madeContent(bytes, async () => new Uint8Array(bytes))];
    });
    return store(name, [heightOf(parts)], "float32", contents.flat());
  }
}

const floatTypes = { F32: "float32", F16: "float16", BF16: "bfloat16" } as const;

function halfType({ dtype, scales }: TensorRef) {
  if (scales || (dtype !== "F16" && dtype !== "BF16")) return undefined;
  return { dtype, type: floatTypes[dtype] };
}

function heightOf(parts: readonly MatrixPart[]): number {
  return parts.reduce((sum, { weight, order }) => sum + (order?.length ?? (weight.shape[0] as number)), 0);
}

function sameForm(a: PackedForm | undefined, b: PackedForm | undefined): boolean {
  return JSON.stringify(a) === JSON.stringify(b);
}
