import { CoppiceError, type MoeModel, moeLayers, type Plan } from "@coppice/core";

/** The numbers of a smaller model that its config states once for all layers. */
export interface ExportShape {
  readonly experts: number;
  readonly topK: number;
}

/**
 * Whether a valid plan can be written in the stock layout so that it computes exactly what the plan says: stock
 * configs hold one number of experts and one top-k for all layers, and stock routers have no router map.
 * @throws COPPICE_PLAN_EXPORT with the layers that stand in the way
 */
export function exportShape(model: MoeModel, plan: Plan): ExportShape {
  const plans = new Map(plan.layers.map((layer) => [layer.layer, layer]));
  const shapes = moeLayers(model).map((layer) => {
    const { index, feedForward } = layer;
    const entry = plans.get(index);
    if (entry?.routerMap) {
      throw refused(
        `layer ${index} has a router map, which no stock ${model.family} router can express`,
        "search with router: stock, or project the plan to stock routers first",
      );
    }
    return {
      index,
      experts: entry?.experts.length ?? feedForward.experts.length,
      topK: entry?.topK ?? feedForward.router.topK,
    };
  });
  const first = shapes[0] as { index: number } & ExportShape;
  for (const { index, experts, topK } of shapes) {
    if (experts !== first.experts) {
      throw refused(
        `layer ${first.index} has ${first.experts} experts and layer ${index} has ${experts}; ` +
          "config.json states one number for all layers",
        "keep the same number of experts in every layer",
      );
    }
    if (topK !== first.topK) {
      throw refused(
        `layer ${first.index} has top-k ${first.topK} and layer ${index} has ${topK}; config.json states one for all layers`,
        "give every layer the same top-k",
      );
    }
  }
  return { experts: first.experts, topK: first.topK };
}

function refused(why: string, hint: string): CoppiceError {
  return new CoppiceError("COPPICE_PLAN_EXPORT", `the plan cannot be written as a stock checkpoint: ${why}`, {
    hint,
  });
}
