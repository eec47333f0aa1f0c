import { decodeValues } from "@coppice/checkpoint";
import { CoppiceError, type DType, dequantizeMatrix, elementCount, type QuantizedBits } from "@coppice/core";
import { decodeModel, encodeModel, type Graph, type GraphInitializer, type GraphNode } from "@coppice/onnx";
import { readExportedConfig } from "./exported-config.js";
import type { ExportedFolder, GraphSource } from "./exported-folder.js";

/**
 * A folder whose matrices of few bits are float32 when they are loaded. ONNX Runtime has no kernels for `MatMulNBits` on
 * WebAssembly: it widens every matrix anew for every token that needs it. Here that is done once; a token then takes a
 * fraction of the time, and the weights as much memory as float32 weights do. The values are the same: `(q - z) s`.
 *
 * ```ts
 * const model = await openExportedModel(widenedFolder(urlFolder("/models/demo")), { runtime: ort });
 * ```
 * @param folder gives graphs as bytes, as `urlFolder` does. Its `graph` then throws COPPICE_BACKEND_UNSUPPORTED for graphs
 * that `coppice export` did not write, or that are a path.
 */
export function widenedFolder(folder: ExportedFolder): ExportedFolder {
  return {
    ...folder,
    async graph(name, externalData) {
      const { isCoppiceExport } = await readExportedConfig(folder);
      if (!isCoppiceExport) {
        throw new CoppiceError(
          "COPPICE_BACKEND_UNSUPPORTED",
          `the graphs of ${folder.label} are not of \`coppice export\`, so that their matrices cannot be widened`,
          { hint: "open the folder as it is" },
        );
      }
      return widenMatrices(await folder.graph(name, externalData));
    },
  };
}

/** Every MatMulNBits of the graph becomes a Gemm; each of its matrices is a data file of its own, in memory. */
function widenMatrices({ graph: model, externalData }: GraphSource): GraphSource {
  if (typeof model === "string") {
    throw new CoppiceError(
      "COPPICE_BACKEND_UNSUPPORTED",
      `${model} is a path; only graphs in memory are widened`,
    );
  }
  const graph = decodeModel(model);
  const files = new Map(externalData.map(({ path, data }) => [path, data]));
  const stored = new Map(graph.initializers.map((initializer) => [initializer.name, initializer]));
  const casts = new Map(
    graph.nodes.flatMap(({ operator, inputs, outputs }) =>
      operator === "Cast" ? [[outputs[0], inputs[0]] as const] : [],
    ),
  );
  const widened: { path: string; data: Uint8Array }[] = [];
  const matrices = new Map<string, GraphInitializer>();

  /** What is stored of a value, before it is cast. */
  const weight = (value: string): GraphInitializer => {
    const found = stored.get(value) ?? stored.get(casts.get(value) ?? "");
    if (found) return found;
    throw new CoppiceError(
      "COPPICE_BACKEND_UNSUPPORTED",
      `${value} of a MatMulNBits is no weight of the graph`,
    );
  };
  const widen = (node: GraphNode): GraphNode => {
    const [rows = "", codes = "", scales = "", zeroPoints = "", , bias = ""] = node.inputs;
    const name = `${codes}.widened`;
    if (!matrices.has(name)) {
      const { N, K, bits, block_size } = node.attributes as Readonly<Record<string, number>>;
      const shape = {
        rows: Number(N),
        columns: Number(K),
        bits: bits as QuantizedBits,
        groupSize: Number(block_size),
      };
      const values = dequantizeMatrix({
        ...shape,
        codes: bytesOf(weight(codes), files),
        scales: floatsOf(weight(scales), files),
        ...(zeroPoints !== "" && { zeroPoints: bytesOf(weight(zeroPoints), files) }),
      });
      const data = new Uint8Array(values.buffer);
      const path = `widened_${widened.length}`;
      widened.push({ path, data });
      const external = { file: path, offset: 0, length: data.length };
      matrices.set(name, { name, type: "float32", shape: [shape.rows, shape.columns], external });
    }
    return {
      operator: "Gemm",
      domain: "",
      inputs: [rows, name, ...(bias === "" ? [] : [bias])],
      outputs: node.outputs,
      attributes: { transB: 1 },
    };
  };
  const nodes = graph.nodes.map((node) => (node.operator === "MatMulNBits" ? widen(node) : node));
  const initializers = [...graph.initializers, ...matrices.values()];
  return {
    graph: encodeModel(usedParts({ ...graph, nodes, initializers })),
    externalData: [...externalData, ...widened],
  };
}

/** Without the weights that nothing needs any more, and their casts. */
function usedParts(graph: Graph): Graph {
  const used = new Set(graph.outputs.map(({ name }) => name));
  for (const node of graph.nodes) {
    if (node.operator !== "Cast") for (const input of readBy(node)) used.add(input);
  }
  const nodes = graph.nodes.filter(
    ({ operator, outputs }) => operator !== "Cast" || outputs.some((output) => used.has(output)),
  );
  for (const node of nodes) for (const input of readBy(node)) used.add(input);
  return { ...graph, nodes, initializers: graph.initializers.filter(({ name }) => used.has(name)) };
}

/** Values that a node takes, those of its branches included. */
function readBy({ inputs, attributes }: GraphNode): string[] {
  const branches = Object.values(attributes).flatMap((value) =>
    typeof value === "object" && "graph" in value ? value.graph.nodes : [],
  );
  return [...inputs, ...branches.flatMap(readBy)];
}

function bytesOf(initializer: GraphInitializer, files: ReadonlyMap<string, Uint8Array>): Uint8Array {
  if ("bytes" in initializer) return initializer.bytes;
  const { file, offset, length } = initializer.external;
  const data = files.get(file);
  if (data && offset + length <= data.length) return data.subarray(offset, offset + length);
  throw new CoppiceError(
    "COPPICE_FORMAT_TRUNCATED",
    `${initializer.name} lies at ${offset} to ${offset + length} of ${file}, which has ${data?.length ?? "no"} bytes`,
  );
}

const dtypes: Partial<Record<GraphInitializer["type"], DType>> = {
  float32: "F32",
  float16: "F16",
  bfloat16: "BF16",
};

function floatsOf(scales: GraphInitializer, files: ReadonlyMap<string, Uint8Array>): Float32Array {
  const { name, type, shape } = scales;
  const dtype = dtypes[type];
  if (!dtype)
    throw new CoppiceError("COPPICE_FORMAT_DTYPE", `the scales ${name} are ${type}, expected floats`);
  const values = new Float32Array(elementCount(shape));
  // Where it begins in its file need not suit its element type.
  decodeValues(dtype, bytesOf(scales, files).slice(), values);
  return values;
}
