import {
  type DType,
  elementCount,
  type MlpSpec,
  type ModelSize,
  mlpTensors,
  modelSize,
  moeLayers,
  type Plan,
  parsePlan,
  type RouterSpec,
} from "@coppice/core";
import { type OutputOptions, type OutputSummary, predictOutput } from "./apply.js";
import type { LoadedCheckpoint } from "./load.js";

/** What a checkpoint is, from its headers and config alone. */
export interface Inspection {
  readonly family: string;
  /** The family as people write it. */
  readonly title: string;
  readonly fingerprint: string;
  readonly layers: number;
  readonly moeLayers: number;
  /** Experts per MoE layer. */
  readonly experts: number;
  readonly topK: number;
  readonly hiddenSize: number;
  readonly vocabSize: number;
  readonly contextLength: number;
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
  const { router, experts } = (withExperts[0] as (typeof withExperts)[0]).feedForward;
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
    fingerprint: model.fingerprint,
    layers: model.layers.length,
    moeLayers: withExperts.length,
    experts: experts.length,
    topK: router.topK,
    hiddenSize: model.hiddenSize,
    vocabSize: model.vocabSize,
    contextLength: model.contextLength,
    parameters,
    activeParameters,
    bytes,
    dtypes,
    perExpert: expertSize(loaded),
    largestTensor: largest,
    routing: describeRouting(router, experts.length),
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

function expertSize(loaded: LoadedCheckpoint): { parameters: number; bytes: number } {
  const size = { parameters: 0, bytes: 0 };
  for (const { feedForward } of moeLayers(loaded.model)) {
    const { router, experts } = feedForward;
    const { weight } = router;
    size.parameters += elementCount(weight.shape) / experts.length;
    size.bytes += (weight.end - weight.begin) / experts.length;
    for (const { shape, begin, end } of mlpTensors(experts[0] as MlpSpec)) {
      size.parameters += elementCount(shape);
      size.bytes += end - begin;
    }
  }
  return size;
}

function describeRouting(router: RouterSpec, experts: number): string {
  const last = router.normalize ? "divided by their sum" : "not divided by their sum";
  return `softmax over ${experts} experts, then the top ${router.topK}, ${last}`;
}
