import {
  packFloats,
  plannedRouter,
  type RouterSpec,
  roundToDtype,
  routerLogits,
  storedRouterRows,
} from "@coppice/core";
import { describe, expect, it, test } from "vitest";
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

describe("plannedRouter and routerLogits", () => {
  const router = {
    weight: stored([3, 2]),
    bias: stored([3]),
    correction: stored([3]),
    order: "sigmoid-topk",
    topK: 1,
  } as const;
  const whole = {
    weight: Float32Array.of(1, 2, 3, 4, 5, 6),
    bias: Float32Array.of(0.5, 0.25, 0.125),
    correction: Float32Array.of(7, 8, 9),
  };

  it("take the rows of the plan's experts, or its own", () => {
    const kept = plannedRouter(whole, { experts: [2, 0] }, router);
    expect(kept).toEqual({
      weight: Float32Array.of(5, 6, 1, 2),
      bias: Float32Array.of(0.125, 0.5),
      correction: Float32Array.of(9, 7),
    });
    const rows = { weight: packFloats(Float32Array.of(1, 0, 0, 1)), bias: [10, 20] };
    const own = plannedRouter(whole, { experts: [2, 0], router: rows }, router);
    expect(own.weight).toEqual(Float32Array.of(1, 0, 0, 1));
    expect(own.bias).toEqual(Float32Array.of(10, 20));
    expect(own.correction).toEqual(Float32Array.of(9, 7));
  });

  it("multiply rows with inputs", () => {
    const { weight, bias } = plannedRouter(whole, { experts: [2, 0] }, router);
    // 5·1 + 6·2 + 1/8, 1·1 + 2·2 + 1/2; then inputs [0, -1].
    expect(routerLogits(weight, bias, Float32Array.of(1, 2, 0, -1), 2)).toEqual(
      Float32Array.of(17.125, 5.5, -5.875, -1.5),
    );
    expect(routerLogits(weight, undefined, Float32Array.of(1, 2), 2)).toEqual(Float32Array.of(17, 5));
  });
});

function stored(shape: number[]) {
  return { name: "router", dtype: "F32", shape, file: "", begin: 0, end: 0 } as const;
}
