import { createPlan, moeLayers } from "@coppice/core";
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
