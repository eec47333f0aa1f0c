import type { LoadedCheckpoint } from "@coppice/checkpoint";
import {
  type AttentionSpec,
  CoppiceError,
  type DecoderLayer,
  type MlpSpec,
  type NormSpec,
  Rng,
  type TensorRef,
} from "@coppice/core";
import { type EditedWeights, scaleColumns } from "./edited-weights.js";
import { Rotation } from "./rotation.js";

/**
 * Rotates the residual stream, and the values of every head, by random orthogonal matrices that are multiplied into the
 * weights (QuaRot, arXiv 2404.00456, offline part): the model computes the same, and outlying channels are spread over all.
 * Gains of norms go into what reads them, so that norms commute with the rotation.
 *
 * With h' = h Q: embedding rows e Q; what reads a norm W diag(gain) Q, routers included; what adds to the stream Qᵀ W;
 * gains 1. Per head of dimension d, with R of size d: Rᵀ on the rows of a value projection, R on the columns of the output
 * projection.
 * @param weights gets the edits
 * @throws COPPICE_FAMILY_UNSUPPORTED for models whose parts do not all rotate
 */
export async function rotateModel(
  { model, mtpLayers }: Pick<LoadedCheckpoint, "model" | "mtpLayers">,
  weights: EditedWeights,
  seed: number,
): Promise<void> {
  const { embedding, layers, finalNorm, head, tied } = model;
  const why =
    model.editOnly !== undefined
      ? "it is not described completely"
      : tied
        ? "its head is its embedding, which would have to become two matrices"
        : mtpLayers > 0 || model.undescribed
          ? "it has parts beside the language model that read or make its residual stream"
          : [finalNorm, ...layers.flatMap((layer) => [layer.attentionNorm, layer.feedForwardNorm])].some(
                ({ kind, weight, bias }) => kind !== "rms" || bias !== undefined || weight === undefined,
              )
            ? "its norms subtract means or add biases"
            : layers.some(({ feedForward }) => feedForward.kind === "moe" && feedForward.router.skip?.spare)
              ? "its skip rule compares magnitudes of channels"
              : undefined;
  if (why !== undefined) {
    throw new CoppiceError(
      "COPPICE_FAMILY_UNSUPPORTED",
      `models of the family ${model.family} are not rotated: ${why}`,
      {
        hint: "quantize without rotation",
      },
    );
  }
  const rng = Rng.fromSeed(seed);
  const stream = new Rotation(model.hiddenSize, rng);
  weights.edit(embedding, stream.ofColumns);
  for (const layer of layers) {
    const { attention, feedForward } = layer;
    await rotateReaders(weights, layer.attentionNorm, attentionReaders(attention), stream);
    await rotateReaders(weights, layer.feedForwardNorm, feedForwardReaders(layer), stream);
    if (attention.kind !== "other") {
      rotateMakers(weights, [attention.output.weight, attention.output.bias], stream);
      rotateValues(weights, attention, rng);
    }
    for (const { down, downBias } of mlpsOf(feedForward)) rotateMakers(weights, [down, downBias], stream);
  }
  await rotateReaders(weights, finalNorm, [head], stream);
}

function attentionReaders(attention: AttentionSpec): TensorRef[] {
  if (attention.kind === "other") return [];
  if (attention.kind === "gqa")
    return [attention.query, attention.key, attention.value].map(({ weight }) => weight);
  return [(attention.queryDown ?? attention.query).weight, attention.kvDown.weight];
}

function feedForwardReaders({ feedForward }: DecoderLayer): TensorRef[] {
  const own =
    feedForward.kind === "moe"
      ? [feedForward.router.weight, ...(feedForward.sharedGate ? [feedForward.sharedGate] : [])]
      : [];
  return [...own, ...mlpsOf(feedForward).flatMap(({ gate, up }) => (gate ? [gate, up] : [up]))];
}

function mlpsOf(feedForward: DecoderLayer["feedForward"]): readonly MlpSpec[] {
  if (feedForward.kind === "dense") return [feedForward.mlp];
  if (feedForward.kind === "other") return [];
  return feedForward.shared ? [...feedForward.experts, feedForward.shared] : feedForward.experts;
}

/** Gives the norm's gain and the rotation to all that reads it. */
async function rotateReaders(
  weights: EditedWeights,
  { weight: gain }: NormSpec,
  readers: readonly TensorRef[],
  rotation: Rotation,
): Promise<void> {
  if (!gain) return;
  const factors = await weights.read(gain);
  for (const reader of readers) {
    weights.edit(reader, scaleColumns(factors));
    weights.edit(reader, rotation.ofColumns);
  }
  weights.edit(gain, (values) => values.fill(1));
}

function rotateMakers(
  weights: EditedWeights,
  makers: readonly (TensorRef | undefined)[],
  rotation: Rotation,
): void {
  for (const maker of makers) if (maker) weights.edit(maker, rotation.ofRows);
}

function rotateValues(weights: EditedWeights, attention: AttentionSpec, rng: Rng): void {
  // A clip of values does not commute with rotation; latent values share a matrix with keys.
  if (attention.kind !== "gqa" || attention.clip !== undefined) return;
  const heads = new Rotation(attention.headDim, rng);
  rotateMakers(weights, [attention.value.weight, attention.value.bias], heads);
  weights.edit(attention.output.weight, heads.ofColumns);
}
