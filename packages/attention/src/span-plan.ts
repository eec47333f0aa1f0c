import {
  type AttentionPlan,
  attentionPlanModel,
  attentionPlanVersion,
  CoppiceError,
  limitableLayers,
  type MoeModel,
  type SpanRule,
} from "@coppice/core";
import { seenTokens } from "./span-rules.js";

export interface SpanPlanParts {
  readonly blockSize: number;
  readonly sinks: number;
  readonly rules: readonly SpanRule[];
  /** Index into `rules` of every KV head of the layers that can be limited, layer by layer. */
  readonly choice: ArrayLike<number>;
  readonly report?: Readonly<Record<string, unknown>>;
}

/** A plan with the rules that are used; layers that no plan limits stay as they are. */
export function spanPlan(model: MoeModel, parts: SpanPlanParts): AttentionPlan {
  const { blockSize, sinks, report } = parts;
  const owner = attentionPlanModel(model);
  const used = [...new Set(Array.from(parts.choice))].sort((a, b) => a - b);
  const limited = limitableLayers(model).map(({ index }) => index);
  return {
    format: "coppice.attention",
    version: attentionPlanVersion,
    model: owner,
    blockSize,
    sinks,
    rules: used.map((rule) => parts.rules[rule] as SpanRule),
    layers: model.layers.map((_, layer) => {
      const place = limited.indexOf(layer);
      if (place < 0) return null;
      const first = place * owner.kvHeads;
      return Array.from({ length: owner.kvHeads }, (_, head) =>
        used.indexOf(parts.choice[first + head] as number),
      );
    }),
    ...(report && { report }),
  };
}

export interface SpanBudgets {
  /** KV heads of all layers that a plan can limit, per layer. */
  readonly layers: readonly number[];
  /** [R, K], tokens that a head with a rule sees at a length. */
  readonly costs: Float64Array;
  /** [K], tokens that these heads may see together. */
  readonly budgets: readonly number[];
}

/**
 * What rules cost and how much there is, so that `spanDensity` is at most `density` at every length. Layers that stay as they
 * are count as dense.
 * @throws COPPICE_ATTENTION_BUDGET when not even the shortest spans are that sparse, COPPICE_ATTENTION_LENGTH
 */
export function spanBudgets(
  model: MoeModel,
  { blockSize, sinks, rules }: Omit<SpanPlanParts, "choice">,
  { lengths, density }: { readonly lengths: readonly number[]; readonly density: number },
): SpanBudgets {
  checkLengths(model, lengths, density);
  const { kvHeads } = attentionPlanModel(model);
  const limited = limitableLayers(model).length;
  const layers = Array.from({ length: limited }, () => kvHeads);
  const fixed = model.layers.length - limited;
  const costs = Float64Array.from(
    rules.flatMap((rule) => lengths.map((length) => seenTokens({ blockSize, sinks }, rule, length))),
  );
  const budgets = lengths.map((length, k) => {
    const budget = Math.floor((density * model.layers.length - fixed) * kvHeads * length + 1e-6);
    const least = Math.min(...rules.map((_, r) => costs[r * lengths.length + k] as number));
    const smallest = (least * limited + fixed * length) / (model.layers.length * length);
    if (limited * kvHeads * least <= budget) return budget;
    throw new CoppiceError(
      "COPPICE_ATTENTION_BUDGET",
      `a density of ${density} is asked for at ${length} tokens; the least possible is ${smallest.toFixed(4)}: ${sinks} sinks ` +
        `and blocks of ${blockSize} make spans of at least ${least} tokens` +
        (fixed > 0 ? `, and ${fixed} of ${model.layers.length} layers stay as they are` : ""),
      {
        hint: "raise the density, or choose fewer sinks or smaller blocks",
        details: { density, smallest, length },
      },
    );
  });
  return { layers, costs, budgets };
}

/** @throws COPPICE_ATTENTION_LENGTH, COPPICE_USAGE */
export function checkLengths(model: MoeModel, lengths: readonly number[], density: number): void {
  if (lengths.length === 0) throw new CoppiceError("COPPICE_USAGE", "no context length is given");
  lengths.forEach((length, k) => {
    const before = lengths[k - 1] ?? 0;
    if (!Number.isSafeInteger(length) || length <= before) {
      throw new CoppiceError(
        "COPPICE_USAGE",
        `the context lengths are ${lengths.join(", ")}; give ascending whole numbers`,
      );
    }
    if (length > model.contextLength) {
      throw new CoppiceError(
        "COPPICE_ATTENTION_LENGTH",
        `a context of ${length} tokens is asked for; the model has ${model.contextLength} positions`,
        { details: { length, positions: model.contextLength } },
      );
    }
  });
  if (!(density > 0 && density <= 1))
    throw new CoppiceError("COPPICE_USAGE", `the density is ${density}, expected above 0 and at most 1`);
}
