/** Strategy parameters of the CMA-ES; names of the tutorial (arXiv 1604.00772, table 1) in brackets. */
export interface CmaConstants {
  /** [w_i], one per rank; the positive ones sum to 1, the negative ones serve the covariance only. */
  readonly weights: readonly number[];
  /** [c_σ] */
  readonly sigmaRate: number;
  /** [d_σ] */
  readonly sigmaDamping: number;
  /** [c_c] */
  readonly pathRate: number;
  /** [c_1] */
  readonly oneRate: number;
  /** [c_μ] */
  readonly muRate: number;
  /** E‖N(0, I)‖ */
  readonly expectedNorm: number;
}

/** Table 1 of the tutorial; a diagonal learns (N + 2) / 3 times as fast, having so many fewer entries (Ros, Hansen). */
export function cmaConstants(dimension: number, population: number, diagonal: boolean): CmaConstants {
  const raw = Array.from({ length: population }, (_, i) => Math.log((population + 1) / 2) - Math.log(i + 1));
  const parents = Math.floor(population / 2);
  const effective = effectiveNumber(raw.slice(0, parents));
  const effectiveNegative = effectiveNumber(raw.slice(parents));
  const sigmaRate = (effective + 2) / (dimension + effective + 5);
  const faster = diagonal ? (dimension + 2) / 3 : 1;
  const oneRate = Math.min(0.5, (faster * 2) / ((dimension + 1.3) ** 2 + effective));
  const muRate = Math.min(
    1 - oneRate,
    (faster * 2 * (0.25 + effective + 1 / effective - 2)) / ((dimension + 2) ** 2 + effective),
  );
  // How much negative weights may weigh: equations 50 to 52.
  const negative = Math.min(
    1 + oneRate / muRate,
    1 + (2 * effectiveNegative) / (effective + 2),
    (1 - oneRate - muRate) / (dimension * muRate),
  );
  const total = (sign: number) => raw.reduce((sum, weight) => sum + Math.max(0, sign * weight), 0);
  const [positiveTotal, negativeTotal] = [total(1), total(-1)];
  return {
    weights: raw.map((weight, i) =>
      i < parents ? weight / positiveTotal : (negative * weight) / negativeTotal,
    ),
    sigmaRate,
    sigmaDamping: 1 + 2 * Math.max(0, Math.sqrt((effective - 1) / (dimension + 1)) - 1) + sigmaRate,
    pathRate: (4 + effective / dimension) / (dimension + 4 + (2 * effective) / dimension),
    oneRate,
    muRate,
    expectedNorm: Math.sqrt(dimension) * (1 - 1 / (4 * dimension) + 1 / (21 * dimension ** 2)),
  };
}

/** μ_eff of weights: the number of equal weights that average as much noise away. */
function effectiveNumber(weights: readonly number[]): number {
  const sum = weights.reduce((total, weight) => total + weight, 0);
  return sum ** 2 / weights.reduce((total, weight) => total + weight ** 2, 0);
}
