import { type AttentionEstimate, type AttentionPlanRequest, limitableLayers } from "@coppice/core";
import { comparedPositions, probeShares } from "./layer-probe.js";

export interface ProfileSizes {
  readonly rows: number;
  readonly rules: number;
  /** Texts of the shortest length, and how many heads or layers are limited one at a time on them. */
  readonly probeTexts: number;
  readonly probeUnits: number;
  readonly checks: number;
  /** Plans that are compared by likelihood. */
  readonly candidates: number;
}

/** Arrays that are done with stay until the engine collects them: peaks were 2.6 to 3.9 times what is held at once. */
const uncollected = 4;

/** What a profile takes at most; what the runner itself needs comes on top. */
export function profileEstimate(
  { model, samples = [], validation = [], lengths }: AttentionPlanRequest,
  sizes: ProfileSizes,
): AttentionEstimate {
  const { hiddenSize, vocabSize } = model;
  const layers = limitableLayers(model);
  const attention = layers[0]?.attention;
  if (!attention) return { bytes: 0, tokenLayers: 0, multiplications: 0 };
  const { heads, kvHeads, headDim } = attention;
  const sum = (texts: typeof samples) => texts.reduce((total, { tokens }) => total + tokens.length, 0);
  const tokens = sum(samples);
  const longest = Math.max(0, ...samples.map((sample) => sample.tokens.length));
  const probes = sum(
    samples.filter((sample) => sample.tokens.length <= (lengths[0] as number)).slice(0, sizes.probeTexts),
  );
  const group = (heads / kvHeads) * headDim;
  const floats =
    tokens * hiddenSize +
    longest * (hiddenSize + 2 * (heads + 3 * kvHeads) * headDim) +
    2 * sizes.probeTexts * comparedPositions * vocabSize +
    vocabSize * hiddenSize +
    2 * hiddenSize * (heads + kvHeads) * headDim +
    2 * kvHeads * group ** 2;
  // Layers before the limited one do not run again.
  const probing = (sizes.probeUnits * probeShares.length) / 2 + 1;
  const rows = Math.min(sizes.rows, longest) * samples.length;
  const perLayer =
    tokens * hiddenSize * 2 * kvHeads * headDim +
    ((sizes.rows * tokens) / 2) * heads * 2 * headDim +
    rows * ((sizes.rules / 2) * kvHeads * (group ** 2 / 2) + 2 * hiddenSize * heads * headDim);
  return {
    bytes: 4 * floats * uncollected,
    tokenLayers:
      model.layers.length *
      (tokens + probes * (probing + sizes.checks + 1) + sum(validation) * (sizes.candidates + 1)),
    multiplications: layers.length * perLayer,
  };
}
