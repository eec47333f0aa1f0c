import { compareUnits, cosine } from "./compare-units.js";
import type { FeatureSource, UnitFeatures } from "./unit-features.js";

/** Where the segments of dropped experts went. */
export interface Segments {
  /** Dropped expert -> the place of each of its hidden units. */
  readonly places: ReadonlyMap<number, Places>;
  /** Mean magnitude of the activations of each hidden unit, [width], of every expert that took part. */
  readonly magnitudes: ReadonlyMap<number, Float64Array>;
}

export interface Places {
  /** [width]: the retained expert, -1 for a discarded segment. */
  readonly expert: Int32Array;
  /** [width]: its unit. */
  readonly unit: Int32Array;
}

export interface PlaceRequest {
  /** Dropped experts, and the retained ones that their segments may join. */
  readonly reach: ReadonlyMap<number, readonly number[]>;
  /** Hidden units of every expert. */
  readonly width: number;
  readonly threshold: number;
  readonly features: FeatureSource;
  /** Called after every pair of experts. */
  readonly onPair: () => Promise<void>;
  /**
   * Bytes of the features of dropped experts that are held at a time, though at least one expert: every retained expert
   * is read once for all of them.
   * @default 512 MiB
   */
  readonly blockBytes?: number;
}

/** Finds the most similar unit for every segment; ties go to the lower expert and unit. */
export async function placeSegments({
  reach,
  width,
  threshold,
  features,
  onPair,
  blockBytes = 512 * 2 ** 20,
}: PlaceRequest): Promise<Segments> {
  const places = new Map<number, Places>();
  const magnitudes = new Map<number, Float64Array>();
  const load = async (expert: number) => {
    const loaded = await features(expert);
    magnitudes.set(expert, (loaded[0] as UnitFeatures).magnitudes);
    return loaded;
  };
  const similarities = new Float64Array(width * width);
  const waiting = [...reach.keys()];
  while (waiting.length > 0) {
    const block = new Map<number, { features: UnitFeatures[]; best: Float64Array }>();
    for (
      let left = blockBytes, size = 0;
      waiting.length > 0 && (block.size === 0 || size <= left);
      left -= size
    ) {
      const expert = waiting.shift() as number;
      const loaded = await load(expert);
      size = bytesOf(loaded);
      block.set(expert, { features: loaded, best: new Float64Array(width).fill(Number.NEGATIVE_INFINITY) });
      places.set(expert, { expert: new Int32Array(width).fill(-1), unit: new Int32Array(width).fill(-1) });
    }
    const wanted = new Set([...block.keys()].flatMap((expert) => reach.get(expert) ?? []));
    for (const retained of [...wanted].sort((a, b) => a - b)) {
      const target = await load(retained);
      for (const [expert, { features: own, best }] of block) {
        if (!reach.get(expert)?.includes(retained)) continue;
        compareUnits(own, target, cosine, similarities);
        const compared = { similarities, sets: own.length, best };
        takeBest({ ...compared, retained, threshold }, places.get(expert) as Places);
        await onPair();
      }
    }
  }
  return { places, magnitudes };
}

interface Compared {
  /** [width, width]: units of the dropped expert by those of the retained one, added up over the sets of features. */
  readonly similarities: Float64Array;
  readonly sets: number;
  /** [width], the highest so far of each segment. */
  readonly best: Float64Array;
  readonly retained: number;
  readonly threshold: number;
}

function takeBest({ similarities, sets, best, retained, threshold }: Compared, places: Places): void {
  const width = best.length;
  for (let segment = 0; segment < width; segment++) {
    for (let unit = 0; unit < width; unit++) {
      const value = (similarities[segment * width + unit] as number) / sets;
      if (value < threshold || !(value > (best[segment] as number))) continue;
      best[segment] = value;
      places.expert[segment] = retained;
      places.unit[segment] = unit;
    }
  }
}

function bytesOf(features: readonly UnitFeatures[]): number {
  return features.flatMap(({ parts }) => parts).reduce((sum, { byteLength }) => sum + byteLength, 0);
}
