import {
  downDelta,
  type LayerPlan,
  type MoeModel,
  moeLayers,
  type Plan,
  type SkipRule,
  skipRuleOf,
  type UnitSource,
} from "@coppice/core";

/** A measured value with its confidence interval. */
export interface Estimate {
  readonly value: number;
  readonly low: number;
  readonly high: number;
  /** Number of samples behind it. */
  readonly samples: number;
}

/** One line of the table of scores. */
export interface ReportRow {
  readonly label: string;
  /** A few words beside the label, such as "mean of 5 draws". */
  readonly note?: string;
  /** "full": the model as it was; "chosen": what this run wrote; "baseline": everything it is compared with. */
  readonly role: "full" | "chosen" | "baseline";
  readonly search?: Estimate;
  readonly holdout?: Estimate;
  /** Paired difference to the full model on the holdout samples. */
  readonly difference?: Estimate;
  /** Of a baseline: by how much the chosen plan is above it on the holdout samples, paired. */
  readonly gain?: Estimate;
}

/** Scores on one task. */
export interface ReportScores {
  /** Name of the task; absent where there is but one. */
  readonly task?: string;
  readonly metric: string;
  /** What else is to be said of these scores. */
  readonly note?: string;
  readonly rows: readonly ReportRow[];
}

/** One scored candidate. */
export interface ReportEvaluation {
  /** From 1, in the order in which candidates were scored. */
  readonly evaluation: number;
  readonly fitness: number;
  /** Part of the search, such as "prune" or "merge". */
  readonly phase: string;
  /** True for a plan that was tried only for what it teaches, so that it is no result. */
  readonly probe?: boolean;
}

/** What became of the experts of one layer. */
export interface ReportLayer {
  readonly layer: number;
  /** Experts that the layer had. */
  readonly experts: number;
  /** Experts whose router rows are kept, slot by slot. */
  readonly kept: readonly number[];
  /**
   * With what weight each expert went into each slot, [slots][experts]; in slots that were put together by hidden units
   * the average over these. Absent: slot i is expert `kept[i]` unchanged.
   */
  readonly merge?: readonly (readonly number[])[];
  /** Slots that were put together hidden unit by hidden unit; absent: none. */
  readonly unitSlots?: number;
  /** Slots whose down projections were changed, as a refit does; absent: none. */
  readonly refitSlots?: number;
  /** True when the router got new rows. */
  readonly newRouter?: true;
  /** Tokens that skip some of their experts. */
  readonly skip?: SkipRule;
  /** True when router probabilities are mapped, which stock checkpoints cannot do. */
  readonly mapped: boolean;
  readonly topK: number;
}

export interface ReportSize {
  readonly bytes: number;
  readonly parameters: number;
  /** Parameters that take part in one token. */
  readonly activeParameters: number;
}

/** A labelled value that is shown as it is. */
export interface ReportFact {
  readonly label: string;
  readonly value: string;
}

/** A plan that no other evaluated plan beats in every objective. */
export interface ReportFrontPoint {
  /** One per objective. */
  readonly values: readonly number[];
  /** Experts per layer. */
  readonly experts: readonly number[];
  /** Experts per token, per layer. */
  readonly topK: readonly number[];
  /** True for the plan that this run chose. */
  readonly chosen?: boolean;
}

/** What a search for several goals at once leaves to choose from. */
export interface ReportFront {
  readonly objectives: readonly { readonly name: string; readonly better: "higher" | "lower" }[];
  readonly points: readonly ReportFrontPoint[];
}

/** Everything the report of a run shows. Plain data; every text may come from a stranger. */
export interface ReportData {
  readonly title: string;
  /** One sentence that says what was done. */
  readonly summary: string;
  /** One table per task. */
  readonly scores: readonly ReportScores[];
  /** What the search maximised, when that is not the metric itself. */
  readonly fitness: string;
  readonly evaluations: readonly ReportEvaluation[];
  readonly front?: ReportFront;
  readonly layers: readonly ReportLayer[];
  readonly before: ReportSize;
  readonly after: ReportSize;
  readonly work: readonly ReportFact[];
  /** Model, task, seed, versions: what has to be equal for the same result. */
  readonly identity: readonly ReportFact[];
  /** Command that repeats the run. */
  readonly command: string;
  /** Warnings and reservations. */
  readonly notes: readonly string[];
}

/** The layers of `plan` (valid for `model`) as the report shows them, unlisted layers included. */
export function reportLayers(model: MoeModel, plan: Plan): ReportLayer[] {
  const plans = new Map(plan.layers.map((layer) => [layer.layer, layer]));
  return moeLayers(model).map(({ index, feedForward: { router, experts } }) => {
    const layer = plans.get(index);
    const merge = layer && mergeWeights(layer, experts.length);
    const unitSlots = layer?.units?.filter((units) => units !== null).length ?? 0;
    const refitSlots = layer?.experts.filter((_, slot) => downDelta(layer, slot)).length ?? 0;
    const skip = skipRuleOf(router, layer);
    return {
      layer: index,
      experts: experts.length,
      kept: layer?.experts ?? experts.map((_, expert) => expert),
      ...(merge && { merge }),
      ...(unitSlots > 0 && { unitSlots }),
      ...(refitSlots > 0 && { refitSlots }),
      mapped: layer?.routerMap !== undefined,
      ...(layer?.router && { newRouter: true }),
      topK: layer?.topK ?? router.topK,
      ...(skip && { skip }),
    };
  });
}

function mergeWeights({ experts, merge, units }: LayerPlan, total: number): ReportLayer["merge"] {
  if (!units) return merge;
  const all = Array.from({ length: total }, (_, expert) => expert);
  return experts.map((kept, slot) => {
    const sources = units[slot];
    if (!sources) return merge?.[slot] ?? all.map((expert) => (expert === kept ? 1 : 0));
    const weights = new Map(sources.map((source) => [source.expert, averageFactor(source)]));
    return all.map((expert) => weights.get(expert) ?? 0);
  });
}

/** Of an expert's units, those that are left out included with 0. */
function averageFactor({ to, rows }: UnitSource): number {
  const sum = to.reduce(
    (total, target, unit) =>
      target < 0 ? total : total + (typeof rows === "number" ? rows : (rows[unit] ?? 0)),
    0,
  );
  return to.length === 0 ? 0 : sum / to.length;
}
