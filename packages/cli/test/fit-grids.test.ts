import { type MoeModel, moeLayers } from "@coppice/core";
import { toyModel } from "@coppice/plugin-kit";
import { defaultGrids } from "@coppice/reconstruct";
import { expect, test } from "vitest";
import { fitGrids } from "../src/search-job/fit-grids.js";

/** One MoE layer whose experts have so many hidden units. */
function wide(width: number): MoeModel {
  const model = toyModel({ layers: 1, experts: 8 });
  const [layer] = moeLayers(model);
  const experts = layer?.feedForward.experts.map((expert) => ({ ...expert, width }));
  return { ...model, layers: [{ ...layer, feedForward: { ...layer?.feedForward, experts } }] } as MoeModel;
}

// Four systems of n unknowns, where experts are large: n³ / 6 each for the 4 choices of the first grid, and for 7 more.
test.each([
  [1_000, defaultGrids.length],
  [10_000, 1],
  [20_000, 0],
])("experts of %s hidden units get %s grids", (width, count) => {
  expect(fitGrids(wide(width), 4)).toEqual(defaultGrids.slice(0, count));
});
