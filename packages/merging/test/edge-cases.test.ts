import {
  type MoeLayer,
  type MoeModel,
  moeLayers,
  type Progress,
  RunEmitter,
  type Statistics,
  type TensorRef,
} from "@coppice/core";
import { randomModel } from "@coppice/plugin-kit";
import { loadFixture } from "@coppice/plugin-kit/node";
import { describe, expect, test } from "vitest";
import { placeSegments } from "../src/dern-segments.js";
import { featureSource } from "../src/unit-features.js";
import { merge } from "./merge.js";

/** Statistics in which all experts are alike and only the first was ever used. */
function oneUsed(model: MoeModel): Statistics {
  const layers = moeLayers(model).map(({ index, feedForward }) => {
    const { length } = feedForward.experts;
    const first = () => Float64Array.from({ length }, (_, e) => (e === 0 ? 5 : 0));
    return {
      layer: index,
      tokens: 5,
      count: first(),
      gate: first(),
      gateNorm: first(),
      logitGram: Float64Array.from({ length: length ** 2 }, (_, i) => (i % (length + 1) === 0 ? 1 : 0.5)),
    } as unknown as Statistics["layers"][number];
  });
  return { model: model.fingerprint, tokens: 5, layers };
}

const shape = { seed: 3, layers: 2, experts: 8, width: 6, hidden: 16 } as const;

describe("mergers refuse by name", () => {
  const { model, weights } = randomModel(shape);
  const statistics = oneUsed(model);
  const request = { model, weights, statistics, keep: 4 };

  test("statistics that are missing or of another model", async () => {
    await expect(merge("m-smoe", { model, keep: 4 })).rejects.toMatchObject({
      code: "COPPICE_STATS_MISSING",
    });
    await expect(
      merge("dern", { model, weights, keep: 4, statistics: { ...statistics, model: "other" } }),
    ).rejects.toMatchObject({ code: "COPPICE_STATS_MODEL" });
  });

  test.each([
    ["hc-smoe", {}, "--with everyOutputSum"],
    ["hc-smoe", { align: "activations" }, "--with everyOutputSum --sample units"],
    ["ream", {}, "--with outputCosine --sample units"],
    ["ream", { align: "weights" }, "--with outputCosine"],
    ["m-smoe", { align: "both" }, "--sample units"],
    ["average", { align: "activations" }, "--sample units"],
    ["dern", { align: "activations" }, "--sample units"],
  ] as const)("%s %o without what it needs, with the flags that collect it", async (name, options, flags) => {
    await expect(merge(name as "ream", request, options)).rejects.toMatchObject({
      code: "COPPICE_STATS_MISSING",
      hint: `collect them with \`coppice calibrate ${flags}\``,
    });
  });

  test("a missing weight reader", async () => {
    const { weights: _, ...without } = request;
    for (const [name, options] of [
      ["average", {}],
      ["m-smoe", { align: "weights" }],
      ["dern", {}],
    ] as const) {
      await expect(merge(name, without, options as never)).rejects.toMatchObject({ code: "COPPICE_USAGE" });
    }
  });

  test("too few experts and groups that do not hold all", async () => {
    for (const name of ["m-smoe", "logit-clusters", "average", "dern"] as const) {
      await expect(merge(name, { ...request, keep: 1 })).rejects.toMatchObject({ code: "COPPICE_PLAN_KEEP" });
    }
    const cosines = statistics.layers.map((layer) => ({ ...layer, outputCosine: layer.logitGram }));
    await expect(
      merge(
        "ream",
        { ...request, statistics: { ...statistics, layers: cosines } },
        { capacity: 1, align: "none" },
      ),
    ).rejects.toMatchObject({ code: "COPPICE_PLUGIN_OPTIONS", hint: "give a capacity of at least 2" });
    await expect(merge("ream", request, { capacity: 0 })).rejects.toMatchObject({
      code: "COPPICE_PLUGIN_OPTIONS",
    });
  });

  test("numbers of experts that the router's groups do not allow", async () => {
    const { model: grouped, weights: reader } = await loadFixture("deepseek_v3");
    for (const name of ["m-smoe", "logit-clusters", "average", "dern"] as const) {
      await expect(
        merge(name, { model: grouped, weights: reader, statistics: oneUsed(grouped), keep: 5 }),
      ).rejects.toMatchObject({ code: "COPPICE_PLAN_GROUPS" });
    }
  });
});

test("groups without a single routed token weigh their members alike", async () => {
  const { model } = randomModel(shape);
  const statistics = oneUsed(model);
  const [plan] = await merge("m-smoe", { model, statistics, keep: 2 });
  // Expert 1 is dominant by the tie of unused experts; all others are equally similar and join the first.
  expect(plan?.experts).toEqual([0, 1]);
  expect(plan?.merge).toEqual([
    [1, 0, 0, 0, 0, 0, 0, 0],
    [0, 1, 0, 0, 0, 0, 0, 0],
  ]);
  const [halves] = await merge("logit-clusters", { model, statistics, keep: 2 });
  expect(halves?.merge?.every((row) => Math.abs(row.reduce((a, b) => a + b, 0) - 1) < 1e-12)).toBe(true);
});

test("experts whose units stand in the same order already are averaged whole", async () => {
  const { model, tensors } = randomModel(shape);
  const weights = {
    // Every expert is the first.
    read: async ({ name }: TensorRef) =>
      (tensors.get(name.replace(/experts\.\d+/, "experts.0")) as Float32Array).slice(),
  };
  const request = { model, weights, statistics: oneUsed(model), keep: 2 };
  for (const plan of await merge("m-smoe", request, { align: "weights", weights: "uniform" })) {
    expect(plan.units).toBeUndefined();
    expect(plan.merge?.[0]).toContain(1 / 7);
  }
});

test("as few experts as the top-k that they will be chosen with", async () => {
  const { model, weights } = randomModel(shape);
  for (const name of ["m-smoe", "average", "dern"] as const) {
    const plans = await merge(name, { model, weights, statistics: oneUsed(model), keep: 1, topK: 1 });
    expect(plans.map(({ experts }) => experts.length)).toEqual([1, 1]);
  }
});

test("all experts kept change nothing", async () => {
  const { model, weights } = randomModel(shape);
  const request = { model, weights, statistics: oneUsed(model), keep: 8 };
  for (const name of ["m-smoe", "logit-clusters", "average", "dern"] as const) {
    for (const plan of await merge(name, request)) {
      expect(plan.experts).toEqual([0, 1, 2, 3, 4, 5, 6, 7]);
      expect(plan.units).toBeUndefined();
      plan.merge?.forEach((row, slot) => {
        expect(row).toEqual(row.map((_, expert) => (expert === slot ? 1 : 0)));
      });
    }
  }
});

test("segments of experts that no token went to are discarded unread", async () => {
  const { model, weights } = randomModel(shape);
  let reads = 0;
  const counting: typeof weights = {
    read: (ref, options) => {
      reads++;
      return weights.read(ref, options);
    },
  };
  const plans = await merge(
    "dern",
    { model, weights: counting, statistics: oneUsed(model), keep: 4 },
    { threshold: -1 },
  );
  expect(plans.map(({ units }) => units)).toEqual([undefined, undefined]);
  expect(reads).toBe(0);
});

test("segments find the same places whatever memory there is", async () => {
  const { model, weights } = randomModel(shape);
  const layer = moeLayers(model)[0] as MoeLayer;
  const features = featureSource("weights", layer, undefined, { weights });
  const reach = new Map([
    [1, [0, 6]],
    [2, [6]],
    [5, [0, 4, 6]],
  ]);
  const read: number[] = [];
  const place = (limit: { blockBytes?: number }) => {
    read.length = 0;
    return placeSegments({
      reach,
      width: shape.width,
      threshold: 0.1,
      features: (expert) => {
        read.push(expert);
        return features(expert);
      },
      onPair: async () => {},
      ...limit,
    });
  };
  const whole = await place({});
  expect(read).toEqual([1, 2, 5, 0, 4, 6]);
  expect(await place({ blockBytes: 1 })).toEqual(whole);
  expect(read).toEqual([1, 0, 6, 2, 6, 5, 0, 4, 6]);
});

test("a stopped merge stops, and progress counts experts", async () => {
  const { model, weights } = randomModel(shape);
  const statistics = oneUsed(model);
  const seen: Progress[] = [];
  const emitter = new RunEmitter();
  emitter.on("progress", (progress) => seen.push(progress));
  const options = { align: "weights", weights: "uniform" } as const;
  await merge("m-smoe", { model, weights, statistics, keep: 2, emitter }, options);
  // In both layers six experts join the first.
  expect(seen.map(({ done, total }) => [done, total])).toEqual(
    Array.from({ length: 12 }, (_, i) => [i + 1, 12]),
  );
  const controller = new AbortController();
  // The merger looks at the signal itself, whatever the reader does.
  const reader: typeof weights = { read: (ref) => weights.read(ref) };
  emitter.on("progress", () => controller.abort());
  await expect(
    merge(
      "m-smoe",
      { model, weights: reader, statistics, keep: 2, emitter, signal: controller.signal },
      options,
    ),
  ).rejects.toMatchObject({ code: "COPPICE_ABORTED" });
});
