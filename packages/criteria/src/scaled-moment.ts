import { type LayerStatistics, moment } from "@coppice/core";

/** Powers of the family `n^a · mean(g^b ‖f‖^c)`. */
export interface MomentPowers {
  readonly a: number;
  readonly b: 0 | 1 | 2;
  readonly c: 0 | 1 | 2;
}

/**
 * `s_j = n_j^a · (1 / n_j) Σ_{t routed to j} g_tj^b ‖f_j(x_t)‖^c` for every expert of a layer; 0 for one that serves no
 * token. With a = 0 it is the mean over the routed tokens, with a = 1 their sum.
 */
export function scaledMoment(statistics: LayerStatistics, { a, b, c }: MomentPowers): Float64Array {
  const { count } = statistics;
  return moment(statistics, b, c).map((sum, expert) => {
    const n = count[expert] as number;
    return n === 0 ? 0 : sum * n ** (a - 1);
  });
}
