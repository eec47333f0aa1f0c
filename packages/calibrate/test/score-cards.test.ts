import { droppedProbability, rankCorrelation } from "@coppice/calibrate";
import {
  type LayerStatistics,
  type MoeModel,
  moeLayers,
  type Statistics,
  statisticsFields,
  statisticsShape,
} from "@coppice/core";
import { randomModel, sampleShapes } from "@coppice/plugin-kit";
import fc from "fast-check";
import { describe, expect, test } from "vitest";

describe("rankCorrelation", () => {
  test("is what its textbook formula says", () => {
    // Without ties: 1 - 6 Σ d² / (n (n² - 1)).
    fc.assert(
      fc.property(fc.uniqueArray(fc.integer(), { minLength: 2, maxLength: 20 }), (values) => {
        const other = values.map((value, i) => Math.sin(value * 13 + i * 7) + i * 1e-3);
        const rank = (list: number[], value: number) => list.filter((x) => x < value).length;
        const n = values.length;
        if (new Set(other).size < n) return;
        const d2 = values.map((value, i) => (rank(values, value) - rank(other, other[i] as number)) ** 2);
        const expected = 1 - (6 * d2.reduce((a, b) => a + b)) / (n * (n * n - 1));
        expect(rankCorrelation(values, other)).toBeCloseTo(expected, 10);
      }),
    );
  });

  test("lets equal values share a rank", () => {
    expect(rankCorrelation([1, 2, 2, 3], [10, 20, 20, 30])).toBeCloseTo(1, 12);
    // Ranks 0, 1.5, 1.5, 3 against 0, 1, 2, 3: covariance 4.5 over sqrt(4.5 * 5).
    expect(rankCorrelation([1, 2, 2, 3], [1, 2, 3, 4])).toBeCloseTo(4.5 / Math.sqrt(22.5), 12);
    expect(rankCorrelation([1, 2, 3], [3, 2, 1])).toBe(-1);
  });

  test("says nothing where nothing is ordered", () => {
    expect(rankCorrelation([1, 1, 1], [1, 2, 3])).toBeUndefined();
    expect(rankCorrelation([], [])).toBeUndefined();
  });
});

function statisticsOf(model: MoeModel, probability: readonly number[]): Statistics {
  const layers = moeLayers(model).map(({ index }): LayerStatistics => {
    const sums = statisticsFields.map((field) => {
      const size = statisticsShape(field, { experts: probability.length, hidden: 0, width: 0 }).reduce(
        (product, n) => product * n,
      );
      return [field, field === "probability" ? Float64Array.from(probability) : new Float64Array(size)];
    });
    return { layer: index, tokens: 10, ...Object.fromEntries(sums) };
  });
  return { model: model.fingerprint, tokens: 10, layers };
}

describe("droppedProbability", () => {
  const { model } = randomModel({ seed: 1, layers: 2, experts: 4, topK: 2 });
  const statistics = statisticsOf(model, [1, 2, 3, 4]);

  test("adds up what the others had, per layer and over all", () => {
    const found = droppedProbability(model, statistics, [
      [4, 3, 2, 1],
      [1, 2, 3, 4],
    ]);
    const worst = [
      { keep: 2, dropped: 0.7 },
      { keep: 3, dropped: 0.4 },
      { keep: 4, dropped: 0 },
    ];
    const best = [
      { keep: 2, dropped: 0.3 },
      { keep: 3, dropped: 0.1 },
      { keep: 4, dropped: 0 },
    ];
    expect(found.layers).toEqual([
      { layer: 0, points: worst },
      { layer: 1, points: best },
    ]);
    expect(found.overall.map(({ keep, dropped }) => [keep, Math.round(dropped * 1e9) / 1e9])).toEqual([
      [2, 0.5],
      [3, 0.25],
      [4, 0],
    ]);
  });

  test("leaves out numbers that the groups of a router cannot share", () => {
    const grouped = randomModel(sampleShapes["latent-attention"]).model;
    const { experts, router } = moeLayers(grouped)[0]?.feedForward ?? {};
    const count = experts?.length ?? 0;
    expect(router?.groups).toMatchObject({ count: 4, keep: 2 });
    const values = Array.from({ length: count }, (_, i) => i + 1);
    const found = droppedProbability(
      grouped,
      statisticsOf(grouped, values),
      moeLayers(grouped).map(() => values),
    );
    // 8 experts in 4 groups of 2: up to 4 may be of 2 groups, more must be shared equally.
    expect(found.overall.map(({ keep }) => keep)).toEqual([3, 4, 6, 8]);
    expect(found.overall.at(-1)?.dropped).toBe(0);
  });

  test("refuses what is not of the same layers", () => {
    for (const scores of [[[1, 2, 3, 4]], [[1, 2], [1]]]) {
      expect(() => droppedProbability(model, statistics, scores)).toThrow(
        expect.objectContaining({ code: "COPPICE_STATS_MODEL" }),
      );
    }
  });
});
