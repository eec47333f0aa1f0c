import { type AttentionMasker, CoppiceError, type Runner } from "@coppice/core";

export interface LayerQueries {
  /** [kvHeads][S, G * keyDim], of the wanted positions. */
  readonly queries: readonly Float32Array[];
  /** [kvHeads][tokens, keyDim] */
  readonly keys: readonly Float32Array[];
}

export interface ShownLayer {
  readonly shown: LayerQueries;
  /** [tokens, hidden], input of the next layer. */
  readonly next: Float32Array;
}

export interface LayerText {
  readonly tokens: Int32Array;
  /** [tokens, hidden], input of the layer; absent for the first. */
  readonly hidden: Float32Array | undefined;
}

/** Runs one layer over a text with a masker that masks nothing and keeps what it is shown. */
export async function showLayer(
  runner: Runner,
  layer: number,
  { tokens, hidden }: LayerText,
  positions: Int32Array,
  signal: AbortSignal | undefined,
): Promise<ShownLayer> {
  let shown: LayerQueries | undefined;
  const masker: AttentionMasker = {
    prefill: ({ queries, keys, heads, kvHeads, keyDim, tokens: count }) => {
      const width = (heads / kvHeads) * keyDim;
      shown = {
        queries: Array.from({ length: kvHeads }, (_, head) => {
          const part = new Float32Array(positions.length * width);
          positions.forEach((position, row) => {
            const from = position * heads * keyDim + head * width;
            part.set(queries.subarray(from, from + width), row * width);
          });
          return part;
        }),
        keys: Array.from({ length: kvHeads }, (_, head) => {
          const part = new Float32Array(count * keyDim);
          for (let t = 0; t < count; t++) {
            const from = (t * kvHeads + head) * keyDim;
            part.set(keys.subarray(from, from + keyDim), t * keyDim);
          }
          return part;
        }),
      };
      return undefined;
    },
  };
  const { boundaries } = await runner.run({
    sequences: [tokens],
    from: layer,
    to: layer + 1,
    boundaries: [layer + 1],
    attention: { masker },
    ...(hidden && { hidden }),
    ...(signal && { signal }),
  });
  const next = boundaries.get(layer + 1);
  if (!shown || !next) {
    throw new CoppiceError(
      "COPPICE_BACKEND_FAILED",
      `the backend showed no queries and keys of layer ${layer}, or no output, which were asked for`,
    );
  }
  return { shown, next };
}
