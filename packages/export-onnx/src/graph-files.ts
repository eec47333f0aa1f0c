import { bytesContent, type OutputFile, outputFile } from "@coppice/checkpoint";
import { type AttentionPlan, type MoeModel, storedBytes, type WeightReader } from "@coppice/core";
import { decoderGraph, decoderPositions, encodeModel, mlpParts, newestOutput } from "@coppice/onnx";
import { type WeightType, weightTypes } from "./export-config.js";
import { type ExportedSpans, exportedSpans } from "./exported-spans.js";
import { ExternalFiles } from "./external-files.js";
import { packedForm } from "./matrix-contents.js";
import { storedWeights } from "./stored-weights.js";
import { checkExpressible, type ExportTarget, targetForms } from "./targets.js";

export interface GraphOptions {
  readonly target: ExportTarget;
  /** Outputs `experts.{layer}` with the experts that every token chose; default false. */
  readonly expertOutputs?: boolean;
  /** Most bytes of a file of weights; default 2,000,000,000, what browsers hold in one buffer. */
  readonly maxFileBytes?: number;
  /** How far heads see, not for `webgpu`; null: as far as the model says. Default: the plan that the checkpoint brings along. */
  readonly attention?: AttentionPlan | null;
  /** Tokens of context that the plan's rules are resolved at, at most and by default the longest text that the graph runs. */
  readonly attentionLength?: number;
}

/** A graph with its weights, ready to be written. */
export interface GraphFiles {
  /** The graph, and the files beside it. */
  readonly files: readonly [graph: OutputFile, ...data: OutputFile[]];
  /** Name of the graph in its folder. */
  readonly graphFile: string;
  readonly type: WeightType;
  /** The longest text that the graph runs. */
  readonly positions: number;
  /** How far heads see, where a plan limits them. */
  readonly spans: ExportedSpans | undefined;
  /** Runs of one token need not give what is present, if the caller says so. */
  readonly sparesPresent: boolean;
}

/** Where transformers.js looks for graphs. */
const graphFolder = "onnx/";
const defaultFileBytes = 2_000_000_000;

/** Lays out the graph of a model. Reads no weights. @throws COPPICE_EXPORT_UNSUPPORTED, the COPPICE_ATTENTION errors */
export function graphFiles(model: MoeModel, weights: WeightReader, options: GraphOptions): GraphFiles {
  const { target, expertOutputs = false, maxFileBytes = defaultFileBytes } = options;
  checkExpressible(model, target);
  const positions = decoderPositions(model);
  const spans = exportedSpans(model, positions, options);
  const type = weightType(model);
  const graphFile = `model${weightTypes[type]}.onnx`;
  const data = new ExternalFiles(graphFile, maxFileBytes);
  const { experts, padding, sparesPresent: spares, ...forms } = targetForms[target];
  const layout = spans && { spans: spans.layout };
  const graph = decoderGraph(
    model,
    (builder) => storedWeights(builder, { model, weights, files: data, ...forms, ...layout }),
    {
      experts,
      padding: spans ? "behind" : padding,
      positions,
      expertOutputs,
      // onnxruntime-node copies all that a graph puts out, and would copy whole caches for every token.
      newestOutput: padding === "anywhere",
      sparesPresent: spares,
      ...layout,
    },
  );
  const graphOutput = outputFile(`${graphFolder}${graphFile}`, [bytesContent(encodeModel(graph))]);
  const sparesPresent = spares && graph.outputs.some(({ name }) => name === newestOutput);
  const files = [graphOutput, ...data.outputFiles(graphFolder)] as const;
  return { files, graphFile, type, positions, spans, sparesPresent };
}

/** The bits that take the most bytes among the matrices of MLPs, which are most of a model. */
function weightType({ layers }: MoeModel): WeightType {
  const bytes = new Map<WeightType, number>();
  for (const { feedForward } of layers) {
    const dense = feedForward.kind === "dense" ? [feedForward.mlp] : [];
    for (const mlp of feedForward.kind === "moe" ? feedForward.experts : dense) {
      for (const part of mlpParts) {
        const ref = mlp[part];
        if (!ref) continue;
        const form = packedForm(ref);
        const type = form ? (`q${form.bits}` as const) : "fp32";
        bytes.set(type, (bytes.get(type) ?? 0) + storedBytes(ref));
      }
    }
  }
  const [most] = [...bytes].sort(([, a], [, b]) => b - a);
  return most?.[0] ?? "fp32";
}
