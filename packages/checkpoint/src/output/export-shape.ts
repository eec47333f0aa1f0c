import {
  CoppiceError,
  groupsAfter,
  type LayerPlan,
  type MoeModel,
  moeLayers,
  type Plan,
  type RouterGroups,
  type SkipRule,
  skipRuleOf,
} from "@coppice/core";
import { type ExpertSlot, slotsOf } from "./expert-slots.js";
import { arrangePadded, leastExperts, paddingObstacle } from "./padding.js";
import { type RouterEntry, routerEntries } from "./router-entries.js";

/**
 * `stock`: what every runtime of the family loads, one number of experts and one top-k for all layers. `runtime`: the
 * same files with those of each layer, which config.json states as lists with one entry per layer; Coppice itself
 * loads it.
 */
export type OutputLayout = "stock" | "runtime";

/** A layer as it is written. */
export interface LayerShape {
  readonly layer: number;
  readonly slots: readonly ExpertSlot[];
  readonly topK: number;
  /** Absent: the choice is not limited to groups. */
  readonly groups?: Pick<RouterGroups, "count" | "keep">;
  /** By expert, what the plan puts in place of its entries; absent: all routers keep theirs. */
  readonly router?: ReadonlyMap<number, RouterEntry>;
  /** Tokens that skip experts; only in the runtime layout. */
  readonly skip?: SkipRule;
}

/** What a plan writes: the numbers that stock configs state once for all layers, and every MoE layer. */
export interface ExportShape {
  /** Most experts of a layer, those that fill up included; in the stock layout every layer has as many. */
  readonly experts: number;
  readonly topK: number;
  /** Absent: the choice is not limited to groups. */
  readonly groups?: Pick<RouterGroups, "count" | "keep">;
  /** Experts that fill up, of all layers. */
  readonly padded: number;
  readonly layers: readonly LayerShape[];
}

/**
 * How a valid plan can be written so that it computes exactly what the plan says. Stock configs hold one number of
 * experts, one top-k and one grouping for all layers, and stock routers have no router map and skip no experts. Layers of different
 * sizes are filled up with experts that are never chosen where the router allows to prove that, see `paddingObstacle`, and so are layers of fewer experts than stock runtimes load.
 *
 * Experts of routers with groups are in ascending order, else in the order of the plan.
 * @throws COPPICE_PLAN_EXPORT with the layers that stand in the way, COPPICE_PLAN_GROUPS
 */
export function exportShape(model: MoeModel, plan: Plan, layout: OutputLayout = "stock"): ExportShape {
  const plans = new Map(plan.layers.map((layer) => [layer.layer, layer]));
  const layers = moeLayers(model).map(({ index, feedForward: { router, experts } }) => {
    const entry: LayerPlan = plans.get(index) ?? {
      layer: index,
      experts: experts.map((_, expert) => expert),
    };
    if (entry.routerMap) {
      throw refused(
        `layer ${index} has a router map, which no stock ${model.family} router can express`,
        "search with router: stock, or project the plan to stock routers first",
      );
    }
    const skip = skipRuleOf(router, entry);
    if (skip && layout === "stock") {
      throw refused(
        `layer ${index} skips experts by a rule (${skip.rule}, ${skip.threshold}), which no stock runtime does`,
        "write the runtime layout, which Coppice itself loads with its rules",
      );
    }
    const topK = entry.topK ?? router.topK;
    const slots = slotsOf(entry);
    if (router.groups) slots.sort((a, b) => a.expert - b.expert);
    return {
      layer: index,
      slots,
      topK,
      router: { ...router, topK },
      skip,
      entries: routerEntries(entry, router),
    };
  });
  type Layer = (typeof layers)[number];
  const groupsOf = ({ router, slots, layer }: Layer) => {
    const experts = slots.map(({ expert }) => expert);
    const groups = groupsAfter(router, experts, layer);
    return groups && { groups: { count: groups.count, keep: groups.keep } };
  };
  const replaced = ({ entries }: Layer) => entries && { router: entries };
  const [first] = layers as [Layer];
  const isStock = layout === "stock";
  for (const { layer, topK } of layers) {
    if (topK === first.topK || !isStock) continue;
    throw refused(
      `layer ${first.layer} has top-k ${first.topK} and layer ${layer} has ${topK}; config.json states one for all layers`,
      `give every layer the same top-k, ${orRuntime}`,
    );
  }
  const other = isStock ? layers.find(({ slots }) => slots.length !== first.slots.length) : undefined;
  const obstacle = paddingObstacle(first.router);
  if (other && obstacle !== undefined) {
    throw refused(
      `layer ${first.layer} has ${first.slots.length} experts and layer ${other.layer} has ${other.slots.length}; ` +
        `config.json states one number for all layers, and smaller layers of ${model.family} cannot be filled up: ${obstacle}`,
      `keep the same number of experts in every layer, ${orRuntime}`,
    );
  }
  const least = leastExperts(model);
  const isUneven = () => !fitsTogether(layers.map((layer) => () => groupsOf(layer)));
  if (isStock && obstacle === undefined && (other || first.slots.length < least || isUneven())) {
    const shape = arrangePadded(layers, least);
    const filled = shape.layers.map((layer, i) => ({ ...layer, ...replaced(layers[i] as Layer) }));
    return { ...shape, layers: filled, topK: first.topK };
  }
  const shapes = layers.map((layer) => ({
    layer: layer.layer,
    slots: layer.slots,
    topK: layer.topK,
    ...groupsOf(layer),
    ...replaced(layer),
    ...(layer.skip && { skip: layer.skip }),
  }));
  const shape = shapes[0] as LayerShape;
  const differs = shapes.find((layer) => !sameGroups(layer, shape));
  if (differs) {
    throw refused(
      `layer ${shape.layer} keeps experts of ${describeGroups(shape)} and layer ${differs.layer} of ` +
        `${describeGroups(differs)}; config.json states one number of groups for all layers`,
      "keep experts of as many groups in every layer",
    );
  }
  const { groups } = shape;
  return {
    experts: Math.max(...shapes.map(({ slots }) => slots.length)),
    topK: Math.max(...shapes.map(({ topK }) => topK)),
    ...(groups && { groups }),
    padded: 0,
    layers: shapes,
  };
}

const orRuntime = "or write the runtime layout, which Coppice itself loads";

/** True when every layer's groups fit the router, and are the same. */
function fitsTogether(groups: readonly (() => Pick<LayerShape, "groups"> | undefined)[]): boolean {
  try {
    const [first, ...rest] = groups.map((of) => of());
    return rest.every((other) => sameGroups(other, first));
  } catch {
    return false;
  }
}

function sameGroups(
  a: Pick<LayerShape, "groups"> | undefined,
  b: Pick<LayerShape, "groups"> | undefined,
): boolean {
  return a?.groups?.count === b?.groups?.count && a?.groups?.keep === b?.groups?.keep;
}

function describeGroups({ groups }: LayerShape): string {
  return groups ? `${groups.count} groups` : "no more groups than a token may use";
}

function refused(why: string, hint: string): CoppiceError {
  return new CoppiceError("COPPICE_PLAN_EXPORT", `the plan cannot be written as a checkpoint: ${why}`, {
    hint,
  });
}
