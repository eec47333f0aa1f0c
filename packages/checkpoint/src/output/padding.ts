import { CoppiceError, groupMembers, type MoeModel, type RouterSpec, type TensorRef } from "@coppice/core";
import { families } from "../families/families.js";
import type { ExpertSlot, OwnSlot } from "./expert-slots.js";
import type { ExportShape, LayerShape } from "./export-shape.js";

/**
 * Bias and correction of experts that fill up. Sigmoid scores are at most 1, corrections and logits of trained models
 * and numbers of plans below 1e6, so nothing real comes near; bfloat16 holds it to within 0.2 %.
 */
export const padBias = -1e9;

/** Bias or correction below which an expert counts as never chosen: far below real ones, and above what fills up. */
export const neverChosen = -1e8;

/**
 * Why layers cannot be filled up with experts that are never chosen and change nothing; undefined when they can.
 *
 * - A correction for the choice alone (DeepSeek-V3, GLM-4.5, Kimi, MiniMax-M2): scores are sigmoids, each of its own
 *   logit, so gate weights of the others stay, bit by bit.
 * - A router bias as part of the logits (GPT-OSS): the others' softmax is over the chosen, or loses exp(-1e9) = 0.
 * - ERNIE's correction is added to a softmax over all experts: one that fills up takes a share of the sum that differs
 *   from token to token, so the others' scores shrink against their corrections and the choice may change.
 */
export function paddingObstacle({ order, correction, bias }: RouterSpec): string | undefined {
  const used =
    bias && order !== "sparsemixer" && order !== "sigmoid-topk"
      ? bias
      : order === "sigmoid-topk"
        ? correction
        : undefined;
  if (used) return storageObstacle([used, ...(correction ? [correction] : [])]);
  if (order === "softmax-topk" && correction) {
    return (
      "its router adds the correction to a softmax over all experts, so further experts would change the choice " +
      "among the others"
    );
  }
  return "its router has no bias that keeps an expert from being chosen";
}

function storageObstacle(tensors: readonly TensorRef[]): string | undefined {
  const narrow = tensors.find(({ dtype }) => dtype !== "F32" && dtype !== "BF16" && dtype !== "F64");
  return narrow && `${narrow.name} is stored as ${narrow.dtype}, which cannot hold ${padBias}`;
}

/**
 * Fewest experts that stock runtimes of a family load. Those of DeepSeek-V3 and its heirs score groups by their two best
 * experts, also where all experts are one group.
 */
export function leastExperts({ family }: MoeModel): number {
  const found = families.find(({ name }) => name === family);
  return found?.config.groups && found.router.order === "sigmoid-topk" ? 2 : 1;
}

interface PaddedLayer {
  readonly layer: number;
  readonly slots: readonly OwnSlot[];
  readonly topK: number;
  readonly router: RouterSpec;
}

/**
 * Fills all layers up to the same number of experts; with groups, to the same number of groups of the same size.
 *
 * A group is scored by its two best experts, so as long as two are real those that fill up do not count. Layers with
 * experts of no more groups than a token may use have no choice of groups to keep: their experts are put into as few
 * groups as possible, all of which score above groups without a real expert.
 * @param least fewest experts of a layer
 * @throws COPPICE_PLAN_GROUPS when a group would have too few real experts
 */
export function arrangePadded(layers: readonly PaddedLayer[], least: number): Omit<ExportShape, "topK"> {
  const grouped = layers.map((layer) => ({ layer, groups: slotGroups(layer) }));
  const limited = grouped.filter(({ layer, groups }) => groups.length > keptGroups(layer));
  if (limited.length === 0) {
    const experts = Math.max(least, ...layers.map(({ slots }) => slots.length));
    return finish(
      layers,
      experts,
      layers.map(({ slots }) => [...slots]),
    );
  }
  for (const { layer, groups } of limited) checkGroups(layer, groups);
  const count = Math.max(...limited.map(({ groups }) => groups.length));
  const size = Math.max(
    ...grouped.map(({ layer, groups }) =>
      groups.length > keptGroups(layer)
        ? Math.max(...groups.map(({ length }) => length))
        : Math.ceil(layer.slots.length / keptGroups(layer)),
    ),
  );
  const arranged = grouped.map(({ layer, groups }) =>
    groups.length > keptGroups(layer) ? groups.flatMap((group) => filled(group, size)) : [...layer.slots],
  );
  const keep = keptGroups(layers[0] as PaddedLayer);
  return finish(layers, count * size, arranged, { count, keep });
}

function finish(
  layers: readonly PaddedLayer[],
  experts: number,
  arranged: readonly (readonly ExpertSlot[])[],
  groups?: LayerShape["groups"],
): Omit<ExportShape, "topK"> {
  const shapes = layers.map(({ layer, topK }, i): LayerShape => {
    const slots = filled(arranged[i] as readonly ExpertSlot[], experts);
    return { layer, slots, topK, ...(groups && { groups }) };
  });
  const pads = shapes.flatMap(({ slots }) => slots.filter(({ kind }) => kind === "pad"));
  return { experts, padded: pads.length, layers: shapes, ...(groups && { groups }) };
}

function filled(slots: readonly ExpertSlot[], size: number): ExpertSlot[] {
  return Array.from({ length: size }, (_, slot) => slots[slot] ?? { kind: "pad" });
}

/** Groups that a token may use; a router without groups is one that may use its only one. */
function keptGroups({ router }: PaddedLayer): number {
  return router.groups?.keep ?? 1;
}

/** The slots of every group that has any. */
function slotGroups({ router, slots }: PaddedLayer): ExpertSlot[][] {
  if (!router.groups) return [[...slots]];
  const experts = slots.map(({ expert }) => expert);
  return groupMembers(router.groups, router, experts)
    .filter(({ length }) => length > 0)
    .map((members) => members.map((expert) => slots[experts.indexOf(expert)] as ExpertSlot));
}

function checkGroups({ layer, router, topK }: PaddedLayer, groups: readonly ExpertSlot[][]): void {
  const sizes = groups.map(({ length }) => length);
  const least = router.groups?.score === "top2" ? 2 : 1;
  const keep = router.groups?.keep ?? 1;
  const fewest = [...sizes]
    .sort((a, b) => a - b)
    .slice(0, keep)
    .reduce((sum, size) => sum + size, 0);
  if (sizes.every((size) => size >= least) && fewest >= topK) return;
  throw new CoppiceError(
    "COPPICE_PLAN_GROUPS",
    `layer ${layer} would have ${sizes.join(", ")} experts in its groups; its router takes ${topK} experts of the best ` +
      `${keep} groups, so each needs at least ${least}, and any ${keep} of them ${topK} together`,
    { hint: "keep more experts of the smallest groups, or none", details: { layer, sizes, keep, least } },
  );
}
