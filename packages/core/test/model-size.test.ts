import { createPlan, elementCount, type MoeModel, modelSize, moeLayers, type TensorRef } from "@coppice/core";
import { describe, expect, test } from "vitest";
import { type TinyShape, tinyModel } from "./tiny-model.js";

const count = (tensors: readonly TensorRef[]) =>
  tensors.reduce((sum, { shape }) => sum + elementCount(shape), 0);
const bytes = (tensors: readonly TensorRef[]) =>
  tensors.reduce((sum, { begin, end }) => sum + end - begin, 0);
const isExpert = (layer: number, expert: number) => (tensor: TensorRef) =>
  tensor.name.startsWith(`${layer}.expert.${expert}.`);
const router = (model: MoeModel, layer: number) =>
  moeLayers(model).find(({ index }) => index === layer)?.feedForward.router;

describe.each<TinyShape>([{}, { tied: true }, { dtype: "F32", experts: 7, topK: 3 }])(
  "modelSize of %j",
  (shape) => {
    const { model, tensors } = tinyModel(shape);
    const { experts = 5, topK = 2, dtype = "BF16" } = shape;

    test("counts every tensor of the file once", () => {
      const size = modelSize(model);
      expect(size.parameters).toBe(count(tensors));
      expect(size.bytes).toBe(bytes(tensors));
      expect(size.bytes).toBe(size.parameters * (dtype === "F32" ? 4 : 2));
    });

    test("counts as active all but the experts that are not chosen", () => {
      const idle = tensors.filter((tensor) =>
        [0, 2].some((layer) =>
          Array.from({ length: experts - topK }, (_, e) => isExpert(layer, e)(tensor)).some(Boolean),
        ),
      );
      expect(modelSize(model).activeParameters).toBe(count(tensors) - count(idle));
    });

    test("counts what a plan leaves", () => {
      const kept = [4, 0, 1].slice(0, Math.max(topK, 3));
      const plan = createPlan(model, [{ layer: 2, experts: kept, topK: 1 }]);
      const dropped = tensors.filter((tensor) =>
        Array.from({ length: experts }, (_, e) => e)
          .filter((expert) => !kept.includes(expert))
          .some((expert) => isExpert(2, expert)(tensor)),
      );
      const rows = (experts - kept.length) * 8;
      const size = modelSize(model, plan);
      expect(size.parameters).toBe(count(tensors) - count(dropped) - rows);
      expect(size.bytes).toBe(bytes(tensors) - bytes(dropped) - rows * (dtype === "F32" ? 4 : 2));
      const idle = (layer: number, active: number) =>
        (experts - active) * count(tensors.filter(isExpert(layer, 0)));
      expect(size.activeParameters).toBe(count(tensors) - idle(0, topK) - idle(2, 1) - rows);
    });

    test("keeps the whole router under a router map", () => {
      const identity = [0, 1, 2].map((expert) =>
        Array.from({ length: experts }, (_, j) => (j === expert ? 1 : 0)),
      );
      const layer = { layer: 0, experts: [0, 1, 2] };
      const stock = modelSize(model, createPlan(model, [layer]));
      const mapped = modelSize(model, createPlan(model, [{ ...layer, routerMap: identity }]));
      const [rows = 0, hidden = 0] = router(model, 0)?.weight.shape ?? [];
      expect(mapped.parameters - stock.parameters).toBe((rows - 3) * hidden);
    });

    test("is not changed by merging, nor by an empty plan", () => {
      const merge = [0, 1, 2].map(() => Array.from({ length: experts }, () => 0.5));
      const plain = createPlan(model, [{ layer: 0, experts: [0, 1, 2] }]);
      const merged = createPlan(model, [{ layer: 0, experts: [0, 1, 2], merge }]);
      expect(modelSize(model, merged)).toEqual(modelSize(model, plain));
      expect(modelSize(model, createPlan(model))).toEqual(modelSize(model));
    });
  },
);
