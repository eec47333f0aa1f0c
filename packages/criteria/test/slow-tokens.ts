import { type MlpSpec, moeLayers } from "@coppice/core";
import { type MemoryModel, type SlowChoice, type SlowExpert, slowForward } from "@coppice/plugin-kit";

/** What one token did in one layer, by the formulas of the model in float64. */
export interface SlowToken {
  readonly choices: readonly SlowChoice[];
  readonly logits: readonly number[];
  /** The residual stream before the block. */
  readonly residual: readonly number[];
  /** What every expert computes from it, chosen or not. */
  every(): SlowExpert[];
}

/** [MoE layer][token] */
export function slowTokens(source: MemoryModel, sequences: readonly Int32Array[]): SlowToken[][] {
  const results = sequences.map((ids) => slowForward(source, [...ids]));
  return moeLayers(source.model).map((_, i) =>
    results.flatMap(({ layers }) =>
      (layers[i]?.choices ?? []).map((choices, t) => ({
        choices,
        logits: layers[i]?.routerLogits[t] ?? [],
        residual: layers[i]?.residual[t] ?? [],
        every: () => layers[i]?.every(t) ?? [],
      })),
    ),
  );
}

/** [MoE layer][expert] */
export function perExpert<T>(
  { model }: MemoryModel,
  tokens: readonly (readonly SlowToken[])[],
  value: (layer: readonly SlowToken[], expert: number, spec: MlpSpec) => T,
): T[][] {
  return moeLayers(model).map(({ feedForward }, i) =>
    feedForward.experts.map((spec, expert) => value(tokens[i] ?? [], expert, spec)),
  );
}

type Added = Pick<SlowChoice, "gate" | "output">;

export function norm({ output }: Pick<SlowChoice, "output">): number {
  return Math.hypot(...output);
}

/** Norm of what an expert added to a token: its output times the gate weight, unless that was in its input. */
export function added({ gate, output }: Added, scalesInput: boolean | undefined): number {
  return Math.hypot(...output.map((value) => (scalesInput ? value : gate * value)));
}

export function total(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0);
}
