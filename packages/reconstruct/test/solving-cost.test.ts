import { moeLayers } from "@coppice/core";
import { randomModel } from "@coppice/plugin-kit";
import { solvingCost } from "@coppice/reconstruct";
import { expect, test } from "vitest";

test("counts a factor and the solutions of every layer and choice", () => {
  const { model } = randomModel({ layers: 2, experts: 4 });
  const width = moeLayers(model)[0]?.feedForward.experts[0]?.width as number;
  const n = 2 * width;
  const one = n ** 3 / 6 + model.hiddenSize * n ** 2;
  expect(solvingCost(model, { slots: 2 })).toBeCloseTo(2 * (4 + 7) * one);
  const grids = [[null, { target: "layer", ridge: 1 }]] as const;
  expect(solvingCost(model, { slots: 2, folds: 3, grids })).toBeCloseTo(2 * 3 * one);
});
