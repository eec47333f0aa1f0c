import {
  CoppiceError,
  type LayerStatistics,
  type MlpSpec,
  type MoeLayer,
  type SampleField,
  type TensorRef,
  type WeightReader,
} from "@coppice/core";

/** By what hidden units of experts are compared: their weights, what they put out on sampled tokens, or both. */
export type UnitView = "weights" | "activations" | "both";

/** A vector for every hidden unit of one expert. */
export interface UnitFeatures {
  /** Each [width, size]: the vector of a unit is its rows of all parts side by side. */
  readonly parts: readonly Float32Array[];
  /** [width]: the L2 norm of each vector. */
  readonly norms: Float64Array;
  /**
   * [width]: how large the unit's activations are; from weights alone a stand-in, the product of the norms of its rows
   * of gate and up (of its row of up with itself for `relu2`).
   */
  readonly magnitudes: Float64Array;
}

/** What a merger that compares hidden units reads. */
export function unitNeeds(view: UnitView | "none"): { weights: boolean; sample?: readonly SampleField[] } {
  return {
    weights: view === "weights" || view === "both",
    ...((view === "activations" || view === "both") && { sample: ["units"] }),
  };
}

/** The features of the hidden units of one expert of a layer, one or two sets of them. */
export type FeatureSource = (expert: number) => Promise<UnitFeatures[]>;

export interface FeatureRequest {
  readonly weights?: WeightReader;
  readonly signal?: AbortSignal;
}

/**
 * Activations come first, so that `magnitudes` of the first set are the best there are.
 * @throws COPPICE_USAGE when weights are needed and there is no reader
 */
export function featureSource(
  view: UnitView,
  { feedForward }: MoeLayer,
  sums: LayerStatistics | undefined,
  { weights, signal }: FeatureRequest,
): FeatureSource {
  const { experts } = feedForward;
  const units = view === "weights" ? undefined : sums?.sample?.units;
  if (view !== "activations" && !weights) {
    throw new CoppiceError(
      "COPPICE_USAGE",
      "hidden units are compared by weights, no weight reader was given",
    );
  }
  return async (expert) => {
    const spec = experts[expert] as MlpSpec;
    const features: UnitFeatures[] = [];
    if (units) features.push(sampledUnits(units, expert, experts.length, spec.width));
    if (view !== "activations") features.push(await storedUnits(spec, weights as WeightReader, signal));
    return features;
  };
}

/**
 * Weights of every hidden unit: its row of gate and up with their biases, and its column of down. Each tensor is read
 * once.
 */
export async function storedUnits(
  { gate, up, down, gateBias, upBias, width }: MlpSpec,
  weights: WeightReader,
  signal?: AbortSignal,
): Promise<UnitFeatures> {
  const read = (ref: TensorRef) => weights.read(ref, { ...(signal && { signal }) });
  const readAll = async (...refs: readonly (TensorRef | undefined)[]) => {
    const parts: Float32Array[] = [];
    for (const ref of refs) if (ref) parts.push(await read(ref));
    return parts;
  };
  const gateParts = await readAll(gate, gateBias);
  const upParts = await readAll(up, upBias);
  const columns = transpose(await read(down), width);
  const [gates, ups] = [squares(gateParts, width), squares(upParts, width)];
  const parts = [...gateParts, ...upParts, columns];
  return {
    parts,
    norms: squares(parts, width).map(Math.sqrt),
    magnitudes: ups.map((value, unit) => (gate ? Math.sqrt(value * (gates[unit] as number)) : value)),
  };
}

/**
 * Activations of every hidden unit on the sampled tokens.
 * @param units [S, E, width]
 */
export function sampledUnits(
  units: Float32Array,
  expert: number,
  experts: number,
  width: number,
): UnitFeatures {
  const tokens = units.length / (experts * width);
  const values = new Float32Array(width * tokens);
  const magnitudes = new Float64Array(width);
  for (let token = 0; token < tokens; token++) {
    const from = (token * experts + expert) * width;
    for (let unit = 0; unit < width; unit++) {
      const value = units[from + unit] as number;
      values[unit * tokens + token] = value;
      magnitudes[unit] = (magnitudes[unit] as number) + Math.abs(value) / tokens;
    }
  }
  return { parts: [values], norms: squares([values], width).map(Math.sqrt), magnitudes };
}

/** Of every unit, the squares of its rows of all parts added up. */
function squares(parts: readonly Float32Array[], width: number): Float64Array {
  const sums = new Float64Array(width);
  for (const part of parts) {
    const size = part.length / width;
    for (let unit = 0; unit < width; unit++) {
      let sum = 0;
      for (let i = unit * size; i < (unit + 1) * size; i++) sum += (part[i] as number) ** 2;
      sums[unit] = (sums[unit] as number) + sum;
    }
  }
  return sums;
}

/** Tiles that fit the processor's cache: a column at a time would miss it at every value. */
const tile = 32;

/** [rows, columns] to [columns, rows] */
function transpose(values: Float32Array, columns: number): Float32Array {
  const rows = values.length / columns;
  const out = new Float32Array(values.length);
  for (let r0 = 0; r0 < rows; r0 += tile) {
    for (let c0 = 0; c0 < columns; c0 += tile) {
      for (let r = r0; r < Math.min(rows, r0 + tile); r++) {
        for (let c = c0; c < Math.min(columns, c0 + tile); c++) {
          out[c * rows + r] = values[r * columns + c] as number;
        }
      }
    }
  }
  return out;
}
