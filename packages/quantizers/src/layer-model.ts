import {
  type AttentionSpec,
  type DecoderLayer,
  elementCount,
  type MoeModel,
  type TensorRef,
  type WeightReader,
} from "@coppice/core";

/** Where the layer stands in `layerModel`: neither first nor last, so that no backend reads embedding or head. */
export const layerPlace = { from: 1, to: 2 } as const;

/** A model in which one layer stands between two others of its kind, to be loaded alone. */
export function layerModel(model: MoeModel, layer: DecoderLayer): MoeModel {
  return { ...model, layers: [0, 1, 2].map((index) => ({ ...layer, index })) };
}

/** Large against the residual stream, which is taken off the result again. */
const probeGain = 1024;
const probeWidth = 16;

/** A model whose only layer adds what attention puts out before its output projection, times a gain. */
export interface AttendedProbe {
  readonly model: MoeModel;
  readonly weights: WeightReader;
  /** Adds the channels that this probe shows to `attended` [tokens, channels]. */
  take(before: Float32Array, after: Float32Array, attended: Float32Array): void;
}

/** Number of channels that the output projection of attention multiplies. */
export function attendedSize(attention: Exclude<AttentionSpec, { kind: "other" }>): number {
  return attention.heads * (attention.kind === "gqa" ? attention.headDim : attention.valueDim);
}

/**
 * Probes of a layer's attention, each of which shows as many channels as the residual stream has: backends show what goes
 * into experts and not what goes into the output projection, so a selection of these channels takes its place and an MLP
 * of zeros that of the experts.
 */
export function attendedProbes(model: MoeModel, layer: DecoderLayer, weights: WeightReader): AttendedProbe[] {
  const { attention } = layer;
  if (attention.kind === "other") return [];
  const hidden = model.hiddenSize;
  const channels = attendedSize(attention);
  const made = (name: string, shape: readonly number[]): TensorRef => ({
    name: `probe.${name}`,
    dtype: "F32",
    shape,
    file: "",
    begin: 0,
    end: 4 * elementCount(shape),
  });
  const selection = made("selection", [hidden, channels]);
  const wide = made("zeros", [probeWidth, hidden]);
  const high = made("zeros", [hidden, probeWidth]);
  const { residualScale: _, ...rest } = model;
  const probed = layerModel(rest, {
    ...layer,
    attention: { ...attention, output: { weight: selection } },
    feedForward: {
      kind: "dense",
      mlp: { gate: wide, up: wide, down: high, width: probeWidth, activation: { kind: "silu" } },
    },
  });
  return Array.from({ length: Math.ceil(channels / hidden) }, (_, part) => {
    const first = part * hidden;
    const count = Math.min(hidden, channels - first);
    return {
      model: probed,
      weights: {
        read: async (ref, options = {}) => {
          if (!ref.name.startsWith("probe.")) return weights.read(ref, options);
          const values = options.into ?? new Float32Array(elementCount(ref.shape));
          values.fill(0);
          if (ref.name === selection.name) {
            for (let i = 0; i < count; i++) values[i * channels + first + i] = probeGain;
          }
          return values;
        },
      },
      take: (before, after, attended) => {
        for (let token = 0; token < before.length / hidden; token++) {
          for (let i = 0; i < count; i++) {
            const at = token * hidden + i;
            attended[token * channels + first + i] =
              ((after[at] as number) - (before[at] as number)) / probeGain;
          }
        }
      },
    };
  });
}
