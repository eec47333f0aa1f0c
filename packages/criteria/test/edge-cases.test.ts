import {
  highest,
  type LayerStatistics,
  Rng,
  type Statistics,
  statisticsFields,
  statisticsShape,
} from "@coppice/core";
import { randomModel } from "@coppice/plugin-kit";
import { expect, test } from "vitest";
import { fixtureModel, registry, score } from "./score.js";

function layerOf(index: number, values: Partial<Record<keyof LayerStatistics, number[]>>): LayerStatistics {
  return {
    layer: index,
    tokens: 4,
    ...(Object.fromEntries(
      statisticsFields.map((field) => [
        field,
        Float64Array.from(
          values[field] ??
            Array<number>(
              statisticsShape(field, { experts: 8, hidden: 64, width: 32 }).reduce(
                (product, size) => product * size,
              ),
            ).fill(0),
        ),
      ]),
    ) as unknown as Omit<LayerStatistics, "layer" | "tokens">),
  };
}

test("an expert that serves no token scores 0, whatever the criterion averages", async () => {
  const { model } = await fixtureModel("mixtral");
  const sums = [4, 0, 1, 3, 0, 0, 0, 0];
  const layers = [0, 1, 2].map((index) =>
    layerOf(index, { count: sums, norm: sums, gateNorm: sums, norm2: sums }),
  );
  const statistics = { model: model.fingerprint, tokens: 4, layers };
  for (const name of ["reap", "man", "msan"] as const) {
    const [scores] = await score(name, { model, statistics });
    expect([...(scores as Float64Array)]).toEqual([1, 0, 1, 1, 0, 0, 0, 0]);
  }
  for (const a of [0, 0.5, 1]) {
    const [scores] = await score("moments", { model, statistics }, { a });
    expect((scores as Float64Array)[1]).toBe(0);
  }
});

test.each([
  ["easy-ep", "change"],
  ["mone", "outputSum,outputNorm2"],
  ["super-experts", "peak"],
  ["heapr-lite", "unitSquares"],
] as const)("%s says how to collect what it needs", async (name, fields) => {
  const { model } = await fixtureModel("mixtral");
  const layers = [0, 1, 2].map((index) => layerOf(index, {}));
  const statistics = { model: model.fingerprint, tokens: 4, layers };
  await expect(score(name, { model, statistics })).rejects.toMatchObject({
    code: "COPPICE_STATS_MISSING",
    message: expect.stringContaining(fields.replace(",", " and ")),
    hint: expect.stringContaining(`--with ${fields}`),
  });
  const criterion = await registry.create("criterion", name, {}, undefined);
  expect(criterion.needs.extras).toEqual(fields.split(","));
});

/** Two tokens of the Mixtral fixture: the first sends experts 0 and 1 the same output, the second experts 2 and 3. */
function sampled(): Statistics {
  const logits = Float32Array.of(5, 5, 0, 0, 0, 0, 0, 0, 0, 0, 5, 5, 0, 0, 0, 0);
  const grams = new Float32Array(2 * 64);
  for (const [token, one, other] of [
    [0, 0, 1],
    [1, 2, 3],
  ] as const) {
    for (const i of [one, other]) for (const j of [one, other]) grams[token * 64 + i * 8 + j] = 4;
  }
  const layers = [0, 1, 2].map((index) => ({ ...layerOf(index, {}), sample: { logits, grams } }));
  return { model: "", tokens: 2, layers, sample: { limit: 2, priorities: Float64Array.of(0, 1) } };
}

test("naee keeps one of two experts that do the same", async () => {
  const { model } = await fixtureModel("mixtral");
  const statistics = { ...sampled(), model: model.fingerprint };
  for (const method of ["auto", "exact", "backward", "forward"] as const) {
    for (const row of await score("naee", { model, statistics, keep: 2 }, { method })) {
      const [a, b] = highest(row, 2) as [number, number];
      expect([Math.floor(a / 2), Math.floor(b / 2)]).toEqual([0, 1]);
      // Without any expert two outputs of norm 2 are lost, of one token each.
      expect(Math.max(...row)).toBeCloseTo(Math.sqrt(8), 5);
      expect(new Set(row).size).toBe(8);
    }
  }
  await expect(score("naee", { model, statistics, keep: 1 })).rejects.toMatchObject({
    code: "COPPICE_PLAN_KEEP",
  });
  // A lower top-k may keep fewer: then one token loses its output.
  const [alone] = await score("naee", { model, statistics, keep: 1, topK: 1 });
  expect((alone as Float64Array).toSorted().at(-2)).toBeCloseTo(2, 5);
});

test("naee says what it lacks", async () => {
  const { model, weights } = await fixtureModel("minimax_m2");
  const { sample: _, ...bare } = { ...sampled(), model: model.fingerprint };
  const layers = bare.layers.map(({ sample: _, ...layer }) => layer);
  await expect(score("naee", { model, weights, statistics: { ...bare, layers } })).rejects.toMatchObject({
    code: "COPPICE_STATS_MISSING",
    hint: expect.stringContaining("--sample logits,grams"),
  });
  const statistics = { ...sampled(), model: model.fingerprint };
  await expect(score("naee", { model, statistics })).rejects.toThrow(/correction of the router of layer 0/);
  const request = { model, weights, statistics };
  await expect(score("naee", request, { method: "exact" })).rejects.toMatchObject({ code: "COPPICE_USAGE" });
  await expect(
    score("naee", { ...request, keep: 4 }, { method: "exact", subsets: 69 }),
  ).rejects.toMatchObject({
    code: "COPPICE_PLUGIN_OPTIONS",
    message: expect.stringContaining("more than 69 sets"),
  });
  const signal = AbortSignal.abort();
  await expect(score("naee", { ...request, signal })).rejects.toMatchObject({ code: "COPPICE_ABORTED" });
});

test("super experts are those beyond the quantile and the share of the highest, in the first layers", async () => {
  const { model } = await fixtureModel("mixtral");
  const peaks = [
    [1, 1, 1, 1, 1, 1, 1, 100],
    [1, 1, 1, 1, 1, 1, 12, 9],
    [1, 1, 1, 1, 1, 1, 1, 500],
  ];
  const flat = [8, 7, 6, 5, 4, 3, 2, 1];
  const layers = peaks.map((peak, index) => ({
    ...layerOf(index, { count: Array<number>(8).fill(1), gateNorm: flat }),
    peak: Float64Array.from(peak),
  }));
  const statistics = { model: model.fingerprint, tokens: 4, layers };
  const protectedIn = async (options: object) =>
    (await score("super-experts", { model, statistics }, options)).map((row) =>
      [...row.keys()].filter((expert) => (row[expert] as number) > 8),
    );
  // Three quarters of three layers are two, and a tenth of 500 is 50.
  expect(await protectedIn({ quantile: 0.5 })).toEqual([[7], [], []]);
  expect(await protectedIn({ quantile: 0.5, depth: 1 })).toEqual([[7], [], [7]]);
  expect(await protectedIn({ quantile: 0.5, share: 0.02 })).toEqual([[7], [6], []]);
  // The 99.5th percentile of 24 values lies just below the highest.
  expect(await protectedIn({ depth: 1 })).toEqual([[], [], [7]]);
});

test("AIMER puts an expert of equal weights first to go, and one of zeros no later", async () => {
  const source = randomModel({ seed: 3 });
  const [first] = source.model.layers;
  if (first?.feedForward.kind !== "moe") throw new Error("layer 0 has experts");
  const fill = (expert: number, value: (i: number) => number) => {
    const spec = first.feedForward.kind === "moe" ? first.feedForward.experts[expert] : undefined;
    for (const ref of [spec?.gate, spec?.up, spec?.down]) {
      source.tensors.get(ref?.name ?? "")?.forEach((_, i, all) => {
        all[i] = value(i);
      });
    }
  };
  fill(0, (i) => (i % 2 === 0 ? 0.5 : -0.5));
  fill(1, () => 0);
  fill(2, (i) => (i === 0 ? 2 : 0));
  const [scores] = await score("aimer", { model: source.model, weights: source.weights });
  const [equal, zero, peaked, ...others] = scores as Float64Array;
  expect(equal).toBeCloseTo(-1, 12);
  expect(zero).toBe(-1);
  for (const other of others) {
    expect(other).toBeGreaterThan(-1);
    expect(peaked).toBeGreaterThan(other);
  }
});

test("random follows the generator, and every expert is as likely as another", async () => {
  const { model } = await fixtureModel("mixtral");
  expect(await score("random", { model })).toEqual(await score("random", { model }));
  const rng = Rng.fromSeed(5);
  const criterion = await registry.create("criterion", "random", {}, undefined);
  const wins = new Array<number>(8).fill(0);
  for (let i = 0; i < 1000; i++) {
    for (const row of await criterion.score({ model, rng })) {
      const best = row.indexOf(Math.max(...row));
      wins[best] = (wins[best] as number) + 1;
    }
  }
  // 3000 draws over 8 experts: mean 375, standard deviation 18.
  for (const count of wins) expect(Math.abs(count - 375)).toBeLessThan(90);
});

test.each(["weight-magnitude", "aimer", "heapr-lite"] as const)(
  "%s needs a reader and stops when told",
  async (name) => {
    const { model, weights } = await fixtureModel("mixtral");
    const layers = [0, 1, 2].map((index) => ({
      ...layerOf(index, {}),
      unitSquares: new Float64Array(8 * 32),
    }));
    const statistics = { model: model.fingerprint, tokens: 4, layers };
    await expect(score(name, { model, statistics })).rejects.toMatchObject({ code: "COPPICE_USAGE" });
    const signal = AbortSignal.abort();
    await expect(score(name, { model, statistics, weights, signal })).rejects.toMatchObject({
      code: "COPPICE_ABORTED",
    });
  },
);
