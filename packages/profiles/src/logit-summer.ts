import type { LogitSums } from "./task-statistic.js";

/** Sums router logits over tokens in float64, for tokens that no statistics file has. */
export class LogitSummer {
  readonly sums: LogitSums;
  readonly #experts: number;

  constructor(experts: number) {
    this.#experts = experts;
    this.sums = {
      tokens: 0,
      probability: new Float64Array(experts),
      topLogit: new Float64Array(experts),
      logitGram: new Float64Array(experts * experts),
    };
  }

  /** @param logits [tokens, E], of all experts */
  add(logits: Float32Array): void {
    const experts = this.#experts;
    const { sums } = this;
    for (let start = 0; start < logits.length; start += experts) {
      const row = logits.subarray(start, start + experts);
      const top = largest(row);
      const most = row[top] as number;
      sums.topLogit[top] = (sums.topLogit[top] as number) + most;
      const mass = row.reduce((sum, logit) => sum + Math.exp(logit - most), 0);
      for (let i = 0; i < experts; i++) {
        const logit = row[i] as number;
        sums.probability[i] = (sums.probability[i] as number) + Math.exp(logit - most) / mass;
        for (let j = 0; j < experts; j++) {
          const at = i * experts + j;
          sums.logitGram[at] = (sums.logitGram[at] as number) + logit * (row[j] as number);
        }
      }
      sums.tokens++;
    }
  }
}

/** Index of the largest value; ties go to the lower one. */
function largest(row: Float32Array): number {
  let best = 0;
  for (let i = 1; i < row.length; i++) if ((row[i] as number) > (row[best] as number)) best = i;
  return best;
}
