import { moeLayers } from "@coppice/core";
import { type MemoryModel, type SlowChoice, slowForward } from "@coppice/plugin-kit";

/** What one token did in one layer, by the formulas of the model in float64. */
export interface SlowToken {
  readonly choices: readonly SlowChoice[];
  readonly logits: readonly number[];
  /** The residual stream before the block. */
  readonly residual: readonly number[];
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
      })),
    ),
  );
}

/** [MoE layer][expert] */
export function perExpert(
  { model }: MemoryModel,
  tokens: readonly (readonly SlowToken[])[],
  value: (layer: readonly SlowToken[], expert: number) => number,
): number[][] {
  return moeLayers(model).map(({ feedForward }, i) =>
    feedForward.experts.map((_, expert) => value(tokens[i] ?? [], expert)),
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
