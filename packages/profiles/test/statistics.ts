import { expertFields, type LayerStatistics, type MoeModel, moeLayers, type Statistics } from "@coppice/core";

/** Statistics of so many tokens, all sums 0, to be filled. */
export function emptyStatistics(model: MoeModel, tokens: number): Statistics {
  return {
    model: model.fingerprint,
    tokens,
    layers: moeLayers(model).map(({ index, feedForward: { experts } }) => ({
      ...(Object.fromEntries(expertFields.map((field) => [field, new Float64Array(experts.length)])) as Pick<
        LayerStatistics,
        (typeof expertFields)[number]
      >),
      layer: index,
      tokens,
      logitGram: new Float64Array(experts.length ** 2),
    })),
  };
}
