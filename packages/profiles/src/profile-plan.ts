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
  const counts = "keep" in size ? layers.map(() => size.keep) : countsWithin(model, lists, layers, size);
  return createPlan(
    model,
    layers.map(({ layer: { index, feedForward }, scores }, i) => ({
      layer: index,
      experts: selectExperts(feedForward, scores, counts[i] as number, index),
    })),
  );
}

/** Experts of every layer that fit into a number of bytes. */
function countsWithin(
  model: MoeModel,
  lists: ExpertLists,
  layers: readonly ListedLayer[],
  { bytes, uniform = true }: Extract<ProfileSize, { readonly bytes: number }>,
): number[] {
  const others = bytesWithoutExperts(model);
  if (bytes < others) {
    throw new CoppiceError(
      "COPPICE_PLAN_KEEP",
      `the weights without any expert take ${others} bytes, the budget is ${bytes}`,
      { hint: "raise the budget" },
    );
  }
  const choices = layers.map(({ layer, scores }, i): LayerChoices => {
    const { index, feedForward } = layer;
    const each = expertBytes(layer);
    const options = feedForward.experts.flatMap((_, expert) => {
      const count = expert + 1;
      const kept =
        count < feedForward.router.topK ? undefined : findExperts(feedForward, scores, count, index);
      if (!kept) return [];
      return [{ count, cost: droppedMass(lists[i] as ExpertLists[number], kept), size: count * each }];
    });
    return { layer: index, options };
  });
  return allocate(choices, { budget: bytes - others, uniform }).layers.map(({ count }) => count);
}

/** Bytes of all weights that no plan drops. */
export function bytesWithoutExperts(model: MoeModel): number {
  const experts = moeLayers(model).reduce(
    (sum, layer) => sum + layer.feedForward.experts.length * expertBytes(layer),
    0,
  );
  return modelSize(model).bytes - experts;
}

interface ListedLayer {
  readonly layer: MoeLayer;
  /** [E], in the order of the layer's list. */
  readonly scores: Float64Array;
}

function listedLayers(model: MoeModel, lists: ExpertLists): ListedLayer[] {
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
