import {
  CoppiceError,
  checkKeep,
  type MoeModel,
  type MoeSpec,
  moeLayers,
  repairExperts,
  type SearchContext,
  selectExperts,
  withTopK,
} from "@coppice/core";

/** Layers that share one set of coefficients (a "weight group" of EEP). */
export interface Group {
  /** Decoder layer indices, ascending. */
  readonly layers: readonly number[];
  /** Positions of these layers among the model's MoE layers, for score tables. */
  readonly rows: readonly number[];
  /** Routed experts in each of the layers. */
  readonly experts: number;
  /** Of the first of the layers, with the top-k of the plans; the others route alike. */
  readonly spec: MoeSpec;
}

/** The shape of a search: what can be chosen where. */
export interface Layout {
  readonly model: MoeModel;
  readonly groups: readonly Group[];
  readonly keep: number;
  /** Experts per token, when the search changes them. */
  readonly topK: number | undefined;
}

export interface LayoutOptions {
  readonly keep: number;
  readonly topK?: number | undefined;
  readonly groups: "layer" | number;
}

/**
 * Cuts the MoE layers into groups of consecutive layers whose sizes differ by at most one.
 * @throws COPPICE_PLAN_KEEP, COPPICE_PLAN_GROUPS, COPPICE_PLUGIN_OPTIONS
 */
export function createLayout(model: MoeModel, options: LayoutOptions): Layout {
  const { keep, topK } = options;
  const layers = moeLayers(model).map((layer) => withTopK(layer, topK));
  const count = options.groups === "layer" ? layers.length : options.groups;
  if (layers.length === 0) {
    throw unusable("the model has no MoE layer, so there is nothing to search");
  }
  if (count > layers.length) {
    throw unusable(`groups=${count} is more than the ${layers.length} MoE layers of the model`);
  }
  for (const layer of layers) {
    const { experts, router } = layer.feedForward;
    checkKeep(keep, experts.length, router.topK, layer.index);
    selectExperts(layer.feedForward, new Float64Array(experts.length), keep, layer.index);
  }
  const groups = Array.from({ length: count }, (_, g): Group => {
    const begin = Math.floor((g * layers.length) / count);
    const end = Math.floor(((g + 1) * layers.length) / count);
    const members = layers.slice(begin, end);
    const sizes = new Set(members.map((layer) => layer.feedForward.experts.length));
    if (sizes.size > 1) {
      throw unusable(
        `groups=${count} puts layers of ${[...sizes].join(" and ")} experts into one group; use groups="layer"`,
      );
    }
    return {
      layers: members.map((layer) => layer.index),
      rows: members.map((_, i) => begin + i),
      experts: [...sizes][0] as number,
      spec: (members[0] as (typeof members)[number]).feedForward,
    };
  });
  return { model, groups, keep, topK };
}

/**
 * One criterion's score per expert of a group: the sum over the group's layers of scores divided by their layer's
 * total, so that a layer with large numbers does not decide for the others.
 */
export function normalizedSums(group: Group, scores: readonly Float64Array[]): Float64Array {
  const sums = new Float64Array(group.experts);
  for (const row of group.rows) {
    const values = scores[row] as Float64Array;
    const total = values.reduce((sum, value) => sum + Math.abs(value), 0) || 1;
    values.forEach((value, expert) => {
      sums[expert] = (sums[expert] as number) + value / total;
    });
  }
  return sums;
}

/** The kept experts per group that one criterion recommends. */
export function subsetsFromScores(layout: Layout, scores: readonly Float64Array[]): number[][] {
  return layout.groups.map((group) =>
    selectExperts(group.spec, normalizedSums(group, scores), layout.keep, group.layers[0] as number),
  );
}

/** `subsets` with each replaced by the nearest one that the routers of its layers can work with. */
export function repairSubsets(layout: Layout, subsets: readonly (readonly number[])[]): number[][] {
  return layout.groups.map(({ spec, layers }, g) =>
    repairExperts(spec, subsets[g] as readonly number[], layers[0] as number),
  );
}

/**
 * Names of the criteria to seed from.
 * @throws COPPICE_PLUGIN_OPTIONS for a name without scores, or scores of another shape
 */
export function seedNames(
  layout: Layout,
  scores: SearchContext["scores"],
  seeds: "all" | readonly string[],
): string[] {
  const names = seeds === "all" ? [...scores.keys()] : [...seeds];
  const rows = layout.groups.flatMap((group) => group.rows.map(() => group.experts));
  for (const name of names) {
    const table = scores.get(name);
    if (!table) {
      throw unusable(
        `seeds names "${name}", for which there are no scores; there are ${[...scores.keys()].join(", ") || "none"}`,
      );
    }
    if (table.length !== rows.length || table.some((row, i) => row.length !== rows[i])) {
      throw unusable(`the scores of "${name}" have another shape than the model's MoE layers`);
    }
  }
  return names;
}

function unusable(message: string): CoppiceError {
  return new CoppiceError("COPPICE_PLUGIN_OPTIONS", `options of search:eep are not usable: ${message}`);
}
