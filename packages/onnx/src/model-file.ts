import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { CoppiceError } from "@coppice/core";
import {
  type AttributeProto,
  AttributeProto_AttributeType,
  AttributeProtoSchema,
  type GraphProto,
  GraphProtoSchema,
  type ModelProto,
  ModelProtoSchema,
  NodeProtoSchema,
  OperatorSetIdProtoSchema,
  StringStringEntryProtoSchema,
  TensorProto_DataLocation,
  TensorProto_DataType,
  TensorProtoSchema,
  TensorShapeProto_DimensionSchema,
  type ValueInfoProto,
  ValueInfoProtoSchema,
} from "./gen/onnx_pb.js";
import {
  type Attribute,
  type Dim,
  type ElementType,
  type ExternalPlace,
  elementBytes,
  elementTypes,
  type Graph,
  type GraphInitializer,
  type GraphValue,
} from "./graph-builder.js";

/** Versions that written models declare: the newest that both ONNX Runtime 1.20 and the tools around it read. */
export const irVersion = 10;
export const opset = 21;

/** TensorProto.DataType of every element type, as the attribute `to` of Cast takes it. */
export const dataTypes: Readonly<Record<ElementType, TensorProto_DataType>> = {
  float32: TensorProto_DataType.FLOAT,
  float16: TensorProto_DataType.FLOAT16,
  bfloat16: TensorProto_DataType.BFLOAT16,
  int32: TensorProto_DataType.INT32,
  int64: TensorProto_DataType.INT64,
  uint8: TensorProto_DataType.UINT8,
  bool: TensorProto_DataType.BOOL,
};

/** The bytes of an ONNX model (opset 21, `com.microsoft` 1, IR 10) that holds `graph`. */
export function encodeModel(graph: Graph): Uint8Array {
  const model = create(ModelProtoSchema, {
    irVersion: BigInt(irVersion),
    producerName: "coppice",
    opsetImport: [
      create(OperatorSetIdProtoSchema, { domain: "", version: BigInt(opset) }),
      create(OperatorSetIdProtoSchema, { domain: "com.microsoft", version: 1n }),
    ],
    graph: graphProto(graph, ""),
  });
  return toBinary(ModelProtoSchema, model);
}

/** @param within begins the names of nodes, which tell them apart in a profile */
function graphProto(graph: Graph, within: string): GraphProto {
  return create(GraphProtoSchema, {
    name: graph.name,
    input: graph.inputs.map(valueInfo),
    output: graph.outputs.map(valueInfo),
    initializer: graph.initializers.map((initializer) =>
      create(TensorProtoSchema, {
        name: initializer.name,
        dataType: dataTypes[initializer.type],
        dims: initializer.shape.map(BigInt),
        ...("bytes" in initializer ? { rawData: initializer.bytes } : externalData(initializer.external)),
      }),
    ),
    node: graph.nodes.map(({ operator, domain, inputs, outputs, attributes }, i) => {
      const name = `${within}${operator}_${i}`;
      return create(NodeProtoSchema, {
        name,
        opType: operator,
        domain,
        input: [...inputs],
        output: [...outputs],
        attribute: Object.entries(attributes).map(([key, value]) => attributeProto(key, value, name)),
      });
    }),
  });
}

/** Limits of `decodeModel`. Its purpose is looking at graphs; weights lie in checkpoints, not in these files. */
export const decodeLimits = {
  /** Far above any graph without weights: one with 10,000 nodes takes about 2 MB. */
  bytes: 64 * 2 ** 20,
  /** A whole 100-layer model with 256 experts, lowered node by node, has about 400,000. */
  nodes: 1_000_000,
  /** ONNX allows eight and more; ONNX Runtime's kernels stop there. */
  dimensions: 8,
  /** Messages inside messages: a branch inside a branch adds three levels, and the format itself needs about six. */
  depth: 32,
} as const;

/**
 * Reads a model written by `encodeModel`, or another within the same means: one graph with its branches, tensors with
 * raw data inside the file or with all their bytes in another one.
 * @throws COPPICE_FORMAT_LIMIT, COPPICE_FORMAT_HEADER (not an ONNX model), COPPICE_FORMAT_DTYPE,
 * COPPICE_FORMAT_SHAPE, COPPICE_BACKEND_UNSUPPORTED (what this reader has no form for)
 */
export function decodeModel(bytes: Uint8Array): Graph {
  limit("bytes", bytes.length, decodeLimits.bytes);
  let model: ModelProto;
  try {
    model = fromBinary(ModelProtoSchema, bytes, {
      readUnknownFields: false,
      recursionLimit: decodeLimits.depth,
    });
  } catch (cause) {
    throw new CoppiceError("COPPICE_FORMAT_HEADER", "the bytes are not an ONNX model", { cause });
  }
  const graph = model.graph;
  if (!graph) throw new CoppiceError("COPPICE_FORMAT_HEADER", "the ONNX model holds no graph");
  return readGraph(graph);
}

function readGraph(graph: GraphProto): Graph {
  limit("nodes", graph.node.length, decodeLimits.nodes);
  return {
    name: graph.name,
    inputs: graph.input.map(graphValue),
    outputs: graph.output.map(graphValue),
    initializers: graph.initializer.map(
      ({ name, dataType, dims, rawData, externalData }): GraphInitializer => {
        const type = elementType(dataType, name);
        const shape = dims.map((size) => Number(size));
        limit("dimensions", shape.length, decodeLimits.dimensions);
        const expected = shape.reduce((product, size) => product * size, elementBytes[type]);
        const external = externalData.length > 0 ? externalPlace(name, externalData) : undefined;
        const found = external ? external.length : rawData.length;
        if (found !== expected || shape.some((size) => size < 0)) {
          throw new CoppiceError(
            "COPPICE_FORMAT_SHAPE",
            `initializer "${name}" of shape [${shape.join(", ")}] has ${found} raw bytes, expected ${expected}`,
          );
        }
        return { name, type, shape, ...(external ? { external } : { bytes: rawData }) };
      },
    ),
    nodes: graph.node.map(({ opType, domain, input, output, attribute }) => ({
      operator: opType,
      domain,
      inputs: input,
      outputs: output,
      attributes: Object.fromEntries(attribute.map((proto) => [proto.name, attributeValue(proto)])),
    })),
  };
}

function externalData({ file, offset, length }: ExternalPlace) {
  const entries = { location: file, offset: `${offset}`, length: `${length}` };
  return {
    dataLocation: TensorProto_DataLocation.EXTERNAL,
    externalData: Object.entries(entries).map(([key, value]) =>
      create(StringStringEntryProtoSchema, { key, value }),
    ),
  };
}

function externalPlace(
  name: string,
  entries: readonly { readonly key: string; readonly value: string }[],
): ExternalPlace {
  const value = (key: string) => entries.find((entry) => entry.key === key)?.value;
  const [offset, length] = [Number(value("offset") ?? 0), Number(value("length"))];
  const file = value("location");
  if (file === undefined || !Number.isSafeInteger(offset) || !Number.isSafeInteger(length)) {
    throw unsupported(`initializer "${name}" lies outside the file at no clear place`);
  }
  return { file, offset, length };
}

function valueInfo({ name, type, shape }: GraphValue): ValueInfoProto {
  const dim = shape.map((size) =>
    create(TensorShapeProto_DimensionSchema, {
      value:
        typeof size === "number"
          ? { case: "dimValue", value: BigInt(size) }
          : { case: "dimParam", value: size },
    }),
  );
  return create(ValueInfoProtoSchema, {
    name,
    type: { value: { case: "tensorType", value: { elemType: dataTypes[type], shape: { dim } } } },
  });
}

function graphValue({ name, type }: ValueInfoProto): GraphValue {
  const tensor = type?.value;
  if (tensor?.case !== "tensorType") throw unsupported(`"${name}" is not a tensor`);
  const dims = tensor.value.shape?.dim ?? [];
  limit("dimensions", dims.length, decodeLimits.dimensions);
  return {
    name,
    type: elementType(tensor.value.elemType, name),
    shape: dims.map(
      ({ value }): Dim => (value.case === "dimValue" ? Number(value.value) : (value.value ?? "?")),
    ),
  };
}

/** @param node the name of the node that has it */
function attributeProto(name: string, value: Attribute, node: string): AttributeProto {
  const type = AttributeProto_AttributeType;
  if (typeof value === "number") {
    return create(AttributeProtoSchema, { name, type: type.INT, i: BigInt(value) });
  }
  if (typeof value === "string") {
    return create(AttributeProtoSchema, { name, type: type.STRING, s: new TextEncoder().encode(value) });
  }
  if ("float" in value) return create(AttributeProtoSchema, { name, type: type.FLOAT, f: value.float });
  if ("graph" in value) {
    const g = graphProto(value.graph, `${node}/${name}/`);
    return create(AttributeProtoSchema, { name, type: type.GRAPH, g });
  }
  return create(AttributeProtoSchema, { name, type: type.INTS, ints: value.map(BigInt) });
}

function attributeValue({ name, type, i, f, s, ints, g }: AttributeProto): Attribute {
  switch (type) {
    case AttributeProto_AttributeType.INT:
      return Number(i);
    case AttributeProto_AttributeType.FLOAT:
      return { float: f };
    case AttributeProto_AttributeType.STRING:
      return new TextDecoder().decode(s);
    case AttributeProto_AttributeType.INTS:
      return ints.map(Number);
    case AttributeProto_AttributeType.GRAPH:
      return { graph: readGraph(g ?? create(GraphProtoSchema)) };
    default:
      throw unsupported(`attribute "${name}" has the type ${AttributeProto_AttributeType[type] ?? type}`);
  }
}

function elementType(dataType: number, name: string): ElementType {
  for (const type of elementTypes) if (dataTypes[type] === dataType) return type;
  const label = TensorProto_DataType[dataType] ?? dataType;
  throw new CoppiceError(
    "COPPICE_FORMAT_DTYPE",
    `"${name}" has the ONNX element type ${label}; known are ${elementTypes.join(", ")}`,
  );
}

function limit(what: string, seen: number, most: number): void {
  if (seen <= most) return;
  throw new CoppiceError("COPPICE_FORMAT_LIMIT", `the ONNX model has ${seen} ${what}, the limit is ${most}`);
}

function unsupported(what: string): CoppiceError {
  return new CoppiceError("COPPICE_BACKEND_UNSUPPORTED", `this ONNX reader has no form for it: ${what}`);
}
