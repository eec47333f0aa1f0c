import { partialModel } from "@coppice/checkpoint";
import {
  createPlan,
  type LayerPlan,
  mlpTensors,
  moeLayers,
  packBfloat16,
  packFloats,
  roundToDtype,
  routerTensors,
  type TensorRef,
  type WeightReader,
} from "@coppice/core";
import { describe, expect, test } from "vitest";
import { expectError, load, tinyFiles } from "./helpers.js";

async function opened(family: "mixtral" | "minimax_m2" = "mixtral") {
  const checkpoint = await load(await tinyFiles({ family }));
  const read: TensorRef[] = [];
  const weights: WeightReader = {
    read: (ref, options) => {
      read.push(ref);
      return checkpoint.weights.read(ref, options);
    },
  };
  const { model } = checkpoint;
  const [first] = moeLayers(model);
  const plan = (layer: Omit<LayerPlan, "layer">) =>
    createPlan(model, [{ layer: first?.index as number, ...layer }]);
  return { checkpoint, model, weights, read, plan, layer: first?.index as number };
}

describe("partialModel", () => {
  test("has the kept experts in ascending order, and reads no others", async () => {
    const { checkpoint, model, weights, read, plan, layer } = await opened();
    await using _ = checkpoint;
    const partial = partialModel(model, weights, plan({ experts: [3, 1] }));
    const spec = moeLayers(partial.model).find(({ index }) => index === layer)?.feedForward;
    const whole = moeLayers(model).find(({ index }) => index === layer)?.feedForward;
    expect(partial.experts.get(layer)).toEqual([1, 3]);
    expect(spec?.experts).toEqual([whole?.experts[1], whole?.experts[3]]);
    for (const expert of spec?.experts ?? []) {
      for (const ref of mlpTensors(expert)) {
        expect(await partial.weights.read(ref)).toEqual(await checkpoint.weights.read(ref));
      }
    }
    const gone = new Set([0, 2].flatMap((expert) => mlpTensors(whole?.experts[expert] as never)));
    expect(read.filter((ref) => gone.has(ref))).toEqual([]);
  });

  test("gathers rows of routers, into a given array too, and leaves the whole router readable", async () => {
    const { checkpoint, model, weights, plan } = await opened("minimax_m2");
    await using _ = checkpoint;
    const partial = partialModel(model, weights, plan({ experts: [3, 1] }));
    const [spec, whole] = [moeLayers(partial.model)[0]?.feedForward, moeLayers(model)[0]?.feedForward];
    const refs = routerTensors(spec as never);
    expect(refs.length).toBe(2);
    for (const [i, ref] of refs.entries()) {
      const original = routerTensors(whole as never)[i] as TensorRef;
      const all = await partial.weights.read(original);
      const size = all.length / 4;
      const expected = Float32Array.of(...all.subarray(size, 2 * size), ...all.subarray(3 * size, 4 * size));
      const into = new Float32Array(2 * size);
      expect(await partial.weights.read(ref)).toEqual(expected);
      expect(await partial.weights.read(ref, { into })).toBe(into);
      expect(into).toEqual(expected);
    }
  });

  test("takes over router rows, top-k and rules", async () => {
    const { checkpoint, model, weights, plan } = await opened();
    await using _ = checkpoint;
    const rows = Float32Array.from({ length: 3 * 8 }, (_, i) => i / 7);
    const skip = { rule: "ratio", threshold: 0.5 } as const;
    const changes = { experts: [0, 1, 2], topK: 1, skip, router: { weight: packFloats(rows) } };
    const partial = partialModel(model, weights, plan(changes));
    const router = moeLayers(partial.model)[0]?.feedForward.router;
    expect(router).toMatchObject({ topK: 1, skip });
    roundToDtype(rows, "BF16");
    expect(await partial.weights.read(router?.weight as TensorRef)).toEqual(rows);
  });

  test("is the model itself under a plan that changes nothing, and another one under any other", async () => {
    const { checkpoint, model, weights, plan } = await opened();
    await using _ = checkpoint;
    expect(partialModel(model, weights, plan({ experts: [0, 1, 2, 3] })).model).toBe(model);
    const prints = [
      [0, 1],
      [1, 0],
      [0, 2],
    ].map((experts) => partialModel(model, weights, plan({ experts })).model.fingerprint);
    expect(prints[0]).toBe(prints[1]);
    expect(new Set([...prints, model.fingerprint]).size).toBe(3);
  });

  test("refuses what needs more than the experts that are kept", async () => {
    const { checkpoint, model, weights, plan } = await opened();
    await using _ = checkpoint;
    const rows = [
      [1, 1, 0, 0],
      [0, 0, 1, 1],
    ];
    const width = moeLayers(model)[0]?.feedForward.experts[0]?.width as number;
    const down = packBfloat16(new Float32Array(2 * model.hiddenSize * width).fill(1));
    const unit = { expert: 1, to: Array.from({ length: width }, () => 0), rows: 1, columns: 1 };
    for (const [part, words] of [
      [{ merge: rows }, /merged experts/],
      [{ routerMap: rows }, /router map/],
      [{ units: [[unit], null] }, /merged experts/],
      [{ down }, /changed down projections/],
    ] as const) {
      await expectError(
        () => partialModel(model, weights, plan({ experts: [0, 1], ...part })),
        "COPPICE_PLAN_INVALID",
        words,
      );
    }
  });
});
