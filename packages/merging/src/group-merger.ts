import {
  checkCollected,
  type ExtraField,
  type LayerPlan,
  type LayerStatistics,
  type MergeRequest,
  type Merger,
  type MoeLayer,
  matchingStatistics,
  moeLayers,
  throwIfAborted,
  type UnitSource,
  withTopK,
} from "@coppice/core";
import * as v from "valibot";
import { alignUnits, membersToAlign } from "./align-units.js";
import { countSteps } from "./count-steps.js";
import { type ExpertGroup, expertWeights, groupPlan, type Weighting } from "./group-plan.js";
import { featureSource, type UnitView, unitNeeds } from "./unit-features.js";

/** Whether hidden units of members are brought into the leader's order before they are averaged. */
export interface AlignOptions {
  /**
   * By what the hidden units of a member are matched to the leader's: their `weights`, their `activations` on a sample of
   * tokens, or `both`; `none` leaves them as they stand.
   * @default "none"
   */
  readonly align?: UnitView | "none" | undefined;
}

export const views = ["weights", "activations", "both"] as const satisfies readonly UnitView[];

export const alignOptions = { align: v.optional(v.picklist(["none", ...views]), "none") };

/**
 * A merger that puts the experts of every layer into groups and averages each group. S: the statistics that grouping
 * gets, undefined only for mergers that may do without.
 */
export interface GroupMerger<S extends LayerStatistics | undefined> {
  readonly name: string;
  readonly weights: Weighting;
  readonly align: UnitView | "none";
  /** What grouping reads. */
  readonly needs: {
    readonly statistics: boolean;
    readonly weights?: boolean;
    readonly extras?: readonly ExtraField[];
  };
  /** `keep` groups that hold every expert of the layer once. */
  group(layer: MoeLayer, sums: S, request: MergeRequest): Promise<ExpertGroup[]>;
}

export function groupMerger<S extends LayerStatistics | undefined = LayerStatistics>({
  name,
  weights,
  align,
  needs: own,
  group,
}: GroupMerger<S>): Merger {
  const units = unitNeeds(align);
  const needs = {
    ...own,
    statistics: own.statistics || weights !== "uniform" || units.sample !== undefined,
    weights: units.weights || own.weights === true,
    ...(units.sample && { sample: units.sample }),
  };
  return {
    needs,
    async merge(request) {
      const { model, topK, signal } = request;
      const statistics = needs.statistics ? matchingStatistics(request) : undefined;
      if (request.statistics && statistics) checkCollected(request.statistics, needs, name);
      const plans: LayerPlan[] = [];
      for (const [i, layer] of moeLayers(model).entries()) {
        throwIfAborted(signal, `merging experts of layer ${layer.index}`);
        const sums = statistics?.[i];
        const groups = await group(withTopK(layer, topK), sums as S, request);
        const members = expertWeights(layer.feedForward.experts.length, sums, weights);
        plans.push(groupPlan(layer.index, groups, members));
      }
      return align === "none" ? plans : alignPlans(plans, align, request);
    },
  };
}

async function alignPlans(
  plans: readonly LayerPlan[],
  view: UnitView,
  request: MergeRequest,
): Promise<LayerPlan[]> {
  const slots = plans.map(({ experts, merge = [] }) =>
    experts.map((leader, slot) => ({ leader, row: merge[slot] as readonly number[] })),
  );
  const onMember = countSteps(request, {
    stage: "aligning hidden units",
    unit: "experts",
    total: slots.flat().reduce((sum, slot) => sum + membersToAlign(slot).length, 0),
  });
  const aligned: LayerPlan[] = [];
  for (const [i, layer] of moeLayers(request.model).entries()) {
    const features = featureSource(view, layer, request.statistics?.layers[i], request);
    const units: (UnitSource[] | null)[] = [];
    for (const slot of slots[i] ?? []) units.push(await alignUnits({ ...slot, features, onMember }));
    const plan = plans[i] as LayerPlan;
    aligned.push(units.some((sources) => sources !== null) ? { ...plan, units } : plan);
  }
  return aligned;
}
