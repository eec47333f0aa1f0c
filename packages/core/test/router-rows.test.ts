import { packFloats, type RouterSpec, roundToDtype, storedRouterRows } from "@coppice/core";
import { expect, test } from "vitest";
import { tinyModel } from "./tiny-model.js";

const { layers, finalNorm } = tinyModel().model;
const [layer] = layers;
if (layer?.feedForward.kind !== "moe" || !finalNorm.weight) throw new Error("layer 0 has experts");
const ref = { ...finalNorm.weight, shape: [5] };
const router: RouterSpec = {
  ...layer.feedForward.router,
  bias: { ...ref, dtype: "F16" },
  correction: { ...ref, dtype: "F32" },
};
const weight = Float32Array.from({ length: 16 }, (_, i) => 0.1 + i / 3);

test("rows are rounded to what each tensor of the router can hold", () => {
  const bias = [1 / 3, 0.1];
  const correction = [0.1, 1e-9];
  const found = storedRouterRows({ weight: packFloats(weight), bias, correction }, router);
  const rounded = (values: Float32Array, dtype: "BF16" | "F16") => {
    roundToDtype(values, dtype);
    return values;
  };
  expect(found.weight).toEqual(rounded(weight.slice(), "BF16"));
  expect(found.bias).toEqual(rounded(Float32Array.from(bias), "F16"));
  expect(found.correction).toEqual(Float32Array.from(correction));
});

test("what the rows do not replace stays undefined", () => {
  expect(storedRouterRows({ weight: packFloats(weight) }, router)).toMatchObject({
    bias: undefined,
    correction: undefined,
  });
});
