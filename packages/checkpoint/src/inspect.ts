import {
  type DType,
  elementCount,
  type MlpSpec,
  type ModelSize,
  type MoeLayer,
  mlpTensors,
  modelSize,
  moeLayers,
  type Plan,
  parsePlan,
  type SkipRule,
} from "@coppice/core";
import { type OutputOptions, type OutputSummary, predictOutput } from "./apply.js";
import type { ExpertTensors } from "./families/expert-tensors.js";
import { routingWords, sharedWords } from "./families/routing-words.js";
import { type AttentionInspection, inspectAttention } from "./inspect-attention.js";
import type { LoadedCheckpoint } from "./load.js";
import { paddingObstacle } from "./output/padding.js";

/** What a checkpoint is, from its headers and config alone. */
export interface Inspection {
  readonly family: string;
  /** The family as people write it. */
  readonly title: string;
  /** Absent when weight files hold only their headers. */
  readonly fingerprint?: string;
  /** Weight files that hold only their headers. */
  readonly headersOnly: readonly string[];
  /** Why no backend runs it; absent: it is executed. */
  readonly editOnly?: string;
  /** `model_type` of the multimodal model around it. */
  readonly wrapper?: string;
  readonly layers: number;
  readonly moeLayers: number;
  /** Experts per MoE layer, the most of any. */
  readonly experts: number;
  /** Experts of every MoE layer, where they differ. */
  readonly expertsByLayer?: readonly number[];
  readonly topK: number;
  readonly hiddenSize: number;
  readonly vocabSize: number;
  readonly contextLength: number;
  /** Values as stored: packed integers, each of which holds several parameters, count once. */
  readonly parameters: number;
  readonly activeParameters: number;
  /** Bytes of all tensors of the files. */
  readonly bytes: number;
  /** Bytes of the tensors by dtype. */
  readonly dtypes: Readonly<Partial<Record<DType, number>>>;
  /** What removing one expert from every MoE layer saves. */
  readonly perExpert: { readonly parameters: number; readonly bytes: number };
  readonly largestTensor: { readonly name: string; readonly bytes: number };
  /** How tokens choose experts, in words. */
  readonly routing: string;
  /** Layers some of whose tokens skip experts (runtime layout), with their rules; absent: none. */
  readonly skips?: readonly ({ readonly layer: number } & SkipRule)[];
  /** What every token goes through beside the routed experts, in words. */
  readonly shared?: string;
  /** Where experts lie: a tensor for every matrix, or all of a layer in stacks. */
  readonly layout: "separate" | "fused";
  /** How weights are quantized, in words. */
  readonly quantization?: string;
  /** The attention plan that it brings along. */
  readonly attention?: AttentionInspection;
  /** Layers for multi-token prediction; their experts follow the last MoE layer. */
  readonly mtpLayers: number;
  /** Whether stock runtimes can load different numbers of experts per layer: `exact`, or why not. */
  readonly unequalLayers: string;
  /** Weight files, with the bytes of each. */
  readonly shards: LoadedCheckpoint["shards"];
  /** The checkpoint that the given plan would make. */
  readonly output?: OutputSummary & Pick<ModelSize, "parameters" | "activeParameters">;
}

/**
 * Describes a loaded checkpoint, and the one that `plan` would make of it. Reads no weights.
 * @throws as `predictOutput` when a plan is given
 */
export async function inspectModel(
  loaded: LoadedCheckpoint,
  plan?: Plan,
  options: OutputOptions = {},
): Promise<Inspection> {
  const { model, tensors, shards, detected } = loaded;
  const withExperts = moeLayers(model);
  const [{ feedForward: first }] = withExperts as [MoeLayer, ...MoeLayer[]];
  const counts = withExperts.map(({ feedForward }) => feedForward.experts.length);
  const skips = withExperts.flatMap(({ index, feedForward: { router } }) =>
    router.skip ? [{ layer: index, ...router.skip }] : [],
  );
  const shared = sharedWords(first);
  const quantization = quantizationWords(loaded);
  const dtypes: Partial<Record<DType, number>> = {};
  let bytes = 0;
  let largest = { name: "", bytes: -1 };
  for (const { name, dtype, begin, end } of tensors.values()) {
    const size = end - begin;
    bytes += size;
    dtypes[dtype] = (dtypes[dtype] ?? 0) + size;
    if (size > largest.bytes) largest = { name, bytes: size };
  }
  const { parameters, activeParameters } = modelSize(model);
  return {
    family: model.family,
    title: detected.family.title,
    ...(loaded.incomplete.length === 0 && { fingerprint: model.fingerprint }),
    headersOnly: loaded.incomplete,
    ...(model.editOnly !== undefined && { editOnly: model.editOnly }),
    ...(detected.wrapper !== undefined && { wrapper: detected.wrapper }),
    layers: model.layers.length,
    moeLayers: withExperts.length,
    experts: Math.max(...counts),
    ...(new Set(counts).size > 1 && { expertsByLayer: counts }),
    topK: first.router.topK,
    hiddenSize: model.hiddenSize,
    vocabSize: model.vocabSize,
    contextLength: model.contextLength,
    parameters,
    activeParameters,
    bytes,
    dtypes,
    perExpert: expertSize(loaded),
    largestTensor: largest,
    routing: routingWords(first),
    ...(skips.length > 0 && { skips }),
    ...(shared !== undefined && { shared }),
    layout: detected.layout.kind,
    ...(quantization !== undefined && { quantization }),
    ...(loaded.attention && { attention: inspectAttention(loaded.attention, model) }),
    mtpLayers: loaded.mtpLayers,
    unequalLayers: paddingObstacle(first.router) ?? "exact",
    shards,
    ...(plan && { output: await inspectOutput(loaded, plan, options) }),
  };
}

async function inspectOutput(
  loaded: LoadedCheckpoint,
  plan: Plan,
  options: OutputOptions,
): Promise<NonNullable<Inspection["output"]>> {
  const summary = await predictOutput(loaded, plan, options);
  const { parameters, activeParameters } = modelSize(loaded.model, parsePlan(plan, loaded.model));
  return { ...summary, parameters, activeParameters };
}

/** Bytes by what surgery takes away, layers for multi-token prediction included, which the model is not. */
function expertSize({ model, edits }: LoadedCheckpoint): { parameters: number; bytes: number } {
  let parameters = 0;
  let bytes = 0;
  for (const { feedForward } of moeLayers(model)) {
    const { router, experts } = feedForward;
    parameters += elementCount(router.weight.shape) / experts.length;
    for (const { shape } of mlpTensors(experts[0] as MlpSpec)) parameters += elementCount(shape);
  }
  for (const { rows, separate, stacked, experts } of edits) {
    for (const { tensor } of [...rows, ...separate, ...stacked])
      bytes += (tensor.end - tensor.begin) / experts;
  }
  return { parameters, bytes };
}

/** How the experts are stored, when not as plain floats. */
function quantizationWords({ model, edits, quantization }: LoadedCheckpoint): string | undefined {
  const method = quantization === undefined ? "" : ` (${quantization})`;
  const [{ separate, stacked }] = edits as [ExpertTensors, ...ExpertTensors[]];
  const tensors = [...separate, ...stacked];
  const bits = moeLayers(model).flatMap(({ feedForward }) =>
    feedForward.experts.flatMap(({ up: { scales } }) => (scales?.format === "packed" ? scales.bits : [])),
  );
  if (bits.length > 0) {
    const sizes = [...new Set(bits)].sort((a, b) => a - b);
    return `codes of ${sizes.join(" and ")} bits with group scales${method}`;
  }
  if (tensors.some(({ merge }) => merge === "opaque"))
    return `packed integers, moved and never decoded${method}`;
  const codes = tensors.find(({ merge }) => merge === "codes");
  if (codes)
    return `${codes.tensor.dtype === "U8" ? "MXFP4" : codes.tensor.dtype} with block scales${method}`;
  return quantization === undefined ? undefined : `experts are plain floats${method}`;
}
