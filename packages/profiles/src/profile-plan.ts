import { allocate, expertBytes, type LayerChoices } from "@coppice/allocate";
import {
  CoppiceError,
  createPlan,
  findExperts,
  type MoeLayer,
  type MoeModel,
  modelSize,
  moeLayers,
  type Plan,
  selectExperts,
} from "@coppice/core";
import { droppedMass, type ExpertLists, rankScores } from "./expert-lists.js";

/** How many experts are kept: so many in every layer, or as many as fit. */
export type ProfileSize =
  | { readonly keep: number }
  | {
      /** Most bytes of all weights of the smaller model as they are stored. */
      readonly bytes: number;
      /**
       * True: as many experts in every layer, as stock configs of most families need. False: as many in each as drop the
       * least probability together, which only a model that is loaded expert by expert can have. @default true
       */
      readonly uniform?: boolean;
    };

/**
 * The plan that keeps the first experts of each list, as far as the groups of the router allow it.
 * @throws COPPICE_PLAN_KEEP when fewer than the top-k, more than all, or none fit; COPPICE_PLAN_GROUPS; COPPICE_PROFILE_MODEL
 */
export function profilePlan(model: MoeModel, lists: ExpertLists, size: ProfileSize): Plan {
  const layers = listedLayers(model, lists);
  if ("keep" in size) {
    const { keep } = size;
    return createPlan(
      model,
      layers.map(({ layer, scores }) => ({
        layer: layer.index,
        experts: selectExperts(layer.feedForward, scores, keep, layer.index),
      })),
    );
  }
  const { bytes, uniform = true } = size;
  const room = bytes - bytesWithoutExperts(model);
  if (room < 0) {
    throw new CoppiceError(
      "COPPICE_PLAN_KEEP",
      `the weights without any expert take ${bytesWithoutExperts(model)} bytes, the budget is ${bytes}`,
      { hint: "raise the budget" },
    );
  }
  const choices = layers.map(({ layer, scores }, i): LayerChoices => {
    const each = expertBytes(layer);
    const counts = layer.feedForward.experts.map((_, expert) => expert + 1);
    const options = counts.flatMap((count) => {
      if (count < layer.feedForward.router.topK) return [];
      const kept = findExperts(layer.feedForward, scores, count, layer.index);
      if (!kept) return [];
      return [{ count, cost: droppedMass(lists[i] as ExpertLists[number], kept), size: count * each }];
    });
    return { layer: layer.index, options };
  });
  const { layers: counts } = allocate(choices, { budget: room, uniform });
  return createPlan(
    model,
    layers.map(({ layer, scores }, i) => ({
      layer: layer.index,
      experts: selectExperts(layer.feedForward, scores, counts[i]?.count as number, layer.index),
    })),
  );
}

/** Bytes of all weights that no plan drops. */
export function bytesWithoutExperts(model: MoeModel): number {
  const experts = moeLayers(model).reduce(
    (sum, layer) => sum + layer.feedForward.experts.length * expertBytes(layer),
    0,
  );
  return modelSize(model).bytes - experts;
}

function listedLayers(model: MoeModel, lists: ExpertLists): { layer: MoeLayer; scores: Float64Array }[] {
  const layers = moeLayers(model);
  const fits = layers.every(({ feedForward }, i) => lists[i]?.ranking.length === feedForward.experts.length);
  if (lists.length !== layers.length || !fits) {
    throw new CoppiceError(
      "COPPICE_PROFILE_MODEL",
      `the lists rank ${lists.map(({ ranking }) => ranking.length).join(", ") || "no"} experts; the MoE layers have ` +
        layers.map(({ feedForward }) => feedForward.experts.length).join(", "),
    );
  }
  return layers.map((layer, i) => ({ layer, scores: rankScores(lists[i]?.ranking ?? []) }));
}
