import { CoppiceError, type LayerPlan, type NormalizeSpec, type RouterSpec, skipRuleOf } from "@coppice/core";
import type { Gpu } from "./gpu.js";
import type { GpuBuffer } from "./gpu-buffer.js";
import { groupLimit, type RoutingOptions, routingKey, routingSource, topKLimit } from "./routing-code.js";
import { slotLimit } from "./sort-choices.js";
import { spread } from "./spread.js";

export interface RouteCall {
  readonly router: RouterSpec;
  readonly plan?: LayerPlan | undefined;
  /** [tokens, columns] router logits, the router's bias included, as in `routeTokens`. */
  readonly logits: GpuBuffer;
  readonly tokens: number;
  /** Kept experts, or all original ones when the plan has a router map. */
  readonly columns: number;
  /** [slots, columns] f32, of a plan with a router map. */
  readonly map?: GpuBuffer | undefined;
  /** [slots] f32 */
  readonly correction?: GpuBuffer | undefined;
  /** [slots] u32 (`slotGroups`), of a router with groups. */
  readonly groupOf?: GpuBuffer | undefined;
  /** [tokens] u32, 1 for those that skip nothing although the plan has a rule. */
  readonly spared?: GpuBuffer | undefined;
  /** Tokens of several runs of one router, each with its own experts; then `plan`, `map`, `groupOf` and `spared` are absent. */
  readonly planned?: PlannedChoices | undefined;
  /** [tokens, topK] i32 and f32, written; with `planned`, blocks in place of slots. */
  readonly slots: GpuBuffer;
  readonly gates: GpuBuffer;
}

/** Which experts each of several runs keeps. */
export interface PlannedChoices {
  /** [tokens] u32: the run of each token. */
  readonly runs: GpuBuffer;
  /** From word `start` on, `stride` words per run: its number of slots, then for each its router column and its block. */
  readonly table: GpuBuffer;
  readonly start: number;
  readonly stride: number;
}

/** The group of the original expert that answers for each slot. */
export function slotGroups(
  router: RouterSpec,
  slots: number,
  plan: LayerPlan | undefined,
): Uint32Array | undefined {
  if (!router.groups) return undefined;
  const size = (router.weight.shape[0] as number) / router.groups.count;
  return Uint32Array.from({ length: slots }, (_, slot) => Math.floor((plan?.experts[slot] ?? slot) / size));
}

/**
 * Experts per token under a plan.
 * @throws COPPICE_BACKEND_UNSUPPORTED when the kernels have no room for the router
 */
export function checkedTopK(router: RouterSpec, slots: number, plan: LayerPlan | undefined): number {
  const topK = Math.min(plan?.topK ?? router.topK, slots);
  const columns = router.weight.shape[0] as number;
  const groups = router.groups?.count ?? 0;
  for (const [what, found, most] of [
    ["experts", columns, slotLimit],
    ["experts per token", topK, topKLimit],
    ["groups of experts", groups, groupLimit],
  ] as const) {
    if (found <= most) continue;
    throw new CoppiceError(
      "COPPICE_BACKEND_UNSUPPORTED",
      `a router has ${found} ${what}; the kernels have room for ${most}`,
      { details: { what, found, most } },
    );
  }
  return topK;
}

/** `routeTokens` of core on the device. @returns experts per token */
export function routeChoices(gpu: Gpu, call: RouteCall): number {
  const { router, plan, logits, tokens, columns, map, correction, groupOf, spared, planned, slots, gates } =
    call;
  const slotCount = plan?.routerMap?.length ?? columns;
  const topK = checkedTopK(router, slotCount, plan);
  const skip = skipRuleOf(router, plan);
  // The softmax over the chosen is one over those that are left.
  const dividesChosen = skip && router.order === "topk-softmax";
  const normalize: NormalizeSpec | undefined =
    map || (dividesChosen && !router.normalize) ? { power: 1 } : router.normalize;
  const sparse = router.order === "sparsemixer";
  const options: RoutingOptions = {
    order: router.order,
    room: Math.max(64, 2 ** Math.ceil(Math.log2(Math.max(columns, slotCount)))),
    map: map !== undefined,
    correction: correction !== undefined && !sparse,
    groups: groupOf && router.groups && !sparse ? router.groups.score : "none",
    normalize: !normalize ? "none" : normalize.power === 1 ? "sum" : "power",
    skip: skip?.rule ?? "none",
    spared: spared !== undefined && skip !== undefined,
    planned: planned !== undefined,
  };
  const kernel = gpu.kernel(routingKey(options), () => routingSource(options));
  const buffers = [
    logits,
    options.map ? map : undefined,
    options.correction ? correction : undefined,
    options.groups === "none" ? undefined : groupOf,
    options.spared ? spared : undefined,
    planned?.runs,
    planned?.table,
    slots,
    gates,
  ].filter((one) => one !== undefined);
  const params = {
    tokens,
    columns,
    slots: slotCount,
    topK,
    groups: router.groups?.count ?? 0,
    keep: router.groups?.keep ?? 0,
    power: normalize?.power ?? 1,
    least: normalize?.least ?? -3e38,
    epsilon: normalize?.epsilon ?? 0,
    scale: router.scale ?? 1,
    threshold: skip?.threshold ?? 0,
    tolerance: 2 * (router.jitter ?? 0),
    start: planned?.start ?? 0,
    stride: planned?.stride ?? 0,
  };
  gpu.commands.dispatch(kernel, buffers, params, ...spread(tokens));
  return topK;
}
