import { type MoeModel, moeLayers, type Plan } from "@coppice/core";

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
  /** Expert-merging matrix [slots][experts]; absent: slot i is expert `kept[i]` unchanged. */
  readonly merge?: readonly (readonly number[])[];
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
  readonly metric: string;
  /** What the search maximised, when that is not the metric itself. */
  readonly fitness: string;
  readonly rows: readonly ReportRow[];
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
    return {
      layer: index,
      experts: experts.length,
      kept: layer?.experts ?? experts.map((_, expert) => expert),
      ...(layer?.merge && { merge: layer.merge }),
      mapped: layer?.routerMap !== undefined,
      topK: layer?.topK ?? router.topK,
    };
  });
}
