import {
  createPlan,
  type LayerSample,
  type LayerStatistics,
  moeLayers,
  type Statistics,
  statisticsFields,
} from "@coppice/core";
import { type MemoryModel, slowForward } from "@coppice/plugin-kit";

/** The model up to a layer: what is behind it does not matter to its output. */
function upTo(source: MemoryModel, layer: number): MemoryModel {
  return { ...source, model: { ...source.model, layers: source.model.layers.slice(0, layer + 1) } };
}

/**
 * What keeping some experts of a layer does to what the layer adds to the residual stream: the whole model runs under a
 * plan for this layer.
 */
export function slowBlockLoss(
  source: MemoryModel,
  ids: readonly number[],
  layer: number,
): (kept: readonly number[]) => number {
  const cut = upTo(source, layer);
  const topK = moeLayers(cut.model).at(-1)?.feedForward.router.topK ?? 0;
  const output = (experts?: readonly number[]) => {
    const fewer = experts && experts.length < topK && { topK: experts.length };
    const plan = experts && createPlan(cut.model, [{ layer, experts, ...fewer }]);
    return slowForward(cut, ids, plan).hidden[layer + 1] as number[][];
  };
  const full = output();
  return (kept) => {
    const changed = output(kept);
    const squares = full.flatMap((row, t) => row.map((y, i) => (y - (changed[t]?.[i] as number)) ** 2));
    return Math.sqrt(squares.reduce((a, b) => a + b)) / (source.model.residualScale ?? 1);
  };
}

/** Statistics that have nothing but a sample: all tokens of one sequence, as the formulas have them. */
export function slowSample(source: MemoryModel, ids: readonly number[]): Statistics {
  const empty = Object.fromEntries(statisticsFields.map((field) => [field, new Float64Array(0)]));
  return {
    model: source.model.fingerprint,
    tokens: ids.length,
    sample: { limit: ids.length, priorities: Float64Array.from(ids.keys()) },
    layers: moeLayers(source.model).map(({ index, feedForward }) => {
      const experts = feedForward.experts.length;
      const sample = slowLayerSample(source, ids, index);
      const sums = { ...empty, count: new Float64Array(experts) } as unknown as LayerStatistics;
      return { ...sums, layer: index, tokens: ids.length, sample };
    }),
  };
}

/** Under a top-k of all experts, chosen from all groups, every token shows every expert. */
function slowLayerSample(source: MemoryModel, ids: readonly number[], index: number): LayerSample {
  const cut = upTo(source, index);
  const layers = cut.model.layers.map((layer) => {
    if (layer.index !== index || layer.feedForward.kind !== "moe") return layer;
    const { groups: _, ...router } = layer.feedForward.router;
    return { ...layer, feedForward: { ...layer.feedForward, router } };
  });
  const experts = moeLayers({ layers }).at(-1)?.feedForward.experts ?? [];
  const plan = createPlan(cut.model, [{ layer: index, experts: [...experts.keys()], topK: experts.length }]);
  const shown = slowForward({ ...cut, model: { ...cut.model, layers } }, ids, plan).layers.at(-1);
  const outputs = (shown?.choices ?? []).map((choices) =>
    choices.toSorted((a, b) => a.slot - b.slot).map(({ output }) => output),
  );
  const inner = (a: readonly number[], b: readonly number[]) =>
    a.reduce((sum, value, i) => sum + value * (b[i] as number), 0);
  return {
    logits: Float32Array.from(shown?.routerLogits.flat() ?? []),
    grams: Float32Array.from(outputs.flatMap((row) => row.flatMap((a) => row.map((b) => inner(a, b))))),
  };
}
