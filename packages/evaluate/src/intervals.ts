import { CoppiceError, Rng } from "@coppice/core";
import { mean, probit, quantileSorted } from "simple-statistics";

/** A value with a two-sided confidence interval. */
export interface Interval {
  readonly value: number;
  readonly low: number;
  readonly high: number;
}

export interface BootstrapOptions {
  /** Default 0.95. */
  readonly confidence?: number;
  /** Default 2,000: the 2.5 % and 97.5 % points then rest on 50 resamples each. */
  readonly resamples?: number;
  /** Default 0. The same data and seed give the same interval. */
  readonly seed?: number;
}

/**
 * Wilson score interval of a share (E. B. Wilson, JASA 22, 1927): unlike the bootstrap it stays honest at 0 and 1,
 * where every resample is equal. Used for all 0/1 metrics.
 */
export function wilsonInterval(right: number, samples: number, confidence = 0.95): Interval {
  checkCount(samples);
  const z = probit(0.5 + confidence / 2);
  const share = right / samples;
  const shrink = 1 + (z * z) / samples;
  const center = (share + (z * z) / (2 * samples)) / shrink;
  const half = (z / shrink) * Math.sqrt((share * (1 - share)) / samples + (z * z) / (4 * samples * samples));
  // Rounding must not move an end past the value itself at 0 and 1.
  return {
    value: share,
    low: right === 0 ? 0 : Math.max(0, center - half),
    high: right === samples ? 1 : Math.min(1, center + half),
  };
}

/**
 * Percentile bootstrap (B. Efron, Annals of Statistics 7, 1979) of a weighted mean over samples:
 * sum(weights x scores) / sum(weights), resampling samples with replacement.
 * @param weights one per sample; absent: all 1
 */
export function bootstrapMean(
  scores: ArrayLike<number>,
  options: BootstrapOptions = {},
  weights?: ArrayLike<number>,
): Interval {
  checkCount(scores.length);
  const at = (picked: (i: number) => number) => {
    let sum = 0;
    let total = 0;
    for (let i = 0; i < scores.length; i++) {
      const j = picked(i);
      const weight = weights ? (weights[j] as number) : 1;
      sum += weight * (scores[j] as number);
      total += weight;
    }
    return sum / total;
  };
  const [low, high] = percentiles(scores.length, options, at);
  return { value: at((i) => i), low, high };
}

export interface PairedDifference extends Interval {
  /**
   * Two-sided: twice the share of resamples whose difference lies on the other side of 0, at most 1. Ties count
   * half on either side, so that equal scores give 1.
   */
  readonly pValue: number;
}

/**
 * Paired bootstrap of mean(a) - mean(b), for two plans scored on the same samples. The pairing removes what
 * makes samples hard for both, so differences show that two separate intervals would hide
 * (P. Koehn, EMNLP 2004, section 4).
 * @throws COPPICE_USAGE when the lengths differ
 */
export function pairedBootstrap(
  a: ArrayLike<number>,
  b: ArrayLike<number>,
  options: BootstrapOptions = {},
): PairedDifference {
  if (a.length !== b.length) {
    throw new CoppiceError(
      "COPPICE_USAGE",
      `a paired comparison got ${a.length} and ${b.length} scores, expected the same samples in both`,
    );
  }
  checkCount(a.length);
  const differences = Array.from(a, (score, i) => score - (b[i] as number));
  const value = mean(differences);
  let below = 0;
  let above = 0;
  const [low, high] = percentiles(differences.length, options, (picked) => {
    let sum = 0;
    for (let i = 0; i < differences.length; i++) sum += differences[picked(i)] as number;
    if (sum < 0) below++;
    else if (sum > 0) above++;
    else {
      below += 0.5;
      above += 0.5;
    }
    return sum / differences.length;
  });
  return { value, low, high, pValue: Math.min(1, (2 * Math.min(below, above)) / (below + above)) };
}

function percentiles(
  count: number,
  options: BootstrapOptions,
  statistic: (picked: (i: number) => number) => number,
): [number, number] {
  const { confidence = 0.95, resamples = 2_000, seed = 0 } = options;
  if (!(confidence > 0 && confidence < 1) || !Number.isSafeInteger(resamples) || resamples < 1) {
    throw new CoppiceError(
      "COPPICE_USAGE",
      `confidence is ${confidence} and resamples ${resamples}, expected a confidence in (0, 1) and at least 1 resample`,
    );
  }
  const rng = Rng.fromSeed(seed);
  const indices = new Int32Array(count);
  const values = new Float64Array(resamples);
  for (let r = 0; r < resamples; r++) {
    for (let i = 0; i < count; i++) indices[i] = rng.integer(count);
    values[r] = statistic((i) => indices[i] as number);
  }
  values.sort();
  const sorted = Array.from(values);
  return [quantileSorted(sorted, (1 - confidence) / 2), quantileSorted(sorted, (1 + confidence) / 2)];
}

function checkCount(samples: number): void {
  if (samples < 1)
    throw new CoppiceError("COPPICE_TASK_EMPTY", "an interval needs at least one sample, got 0");
}
