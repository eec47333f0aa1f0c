import { allocate, expertChoices, expertPlan } from "@coppice/allocate";
import { modelSize, moeLayers, parsePlan, Rng, selectExperts } from "@coppice/core";
import { randomModel, sampleShapes } from "@coppice/plugin-kit";
import { describe, expect, test } from "vitest";

const { model } = randomModel({ seed: 2, layers: 4, denseLayers: [1], experts: 6, topK: 2 });

function randomScores(layers: number, experts: number, seed: number): number[][] {
  const rng = Rng.fromSeed(seed);
  return Array.from({ length: layers }, (_, l) =>
    Array.from({ length: experts }, () => rng.uniform() ** 3 * (l + 1)),
  );
}

/** A global threshold, step by step: the floor of every layer, then the highest of all that are left. */
function threshold(scores: readonly number[][], total: number, floor: number): number[] {
  const ranked = scores.map((row) => row.toSorted((a, b) => b - a));
  const rest = ranked.flatMap((row, layer) => row.slice(floor).map((score) => ({ score, layer })));
  rest.sort((a, b) => b.score - a.score);
  const taken = rest.slice(0, total - floor * scores.length);
  return ranked.map((_, l) => floor + taken.filter(({ layer }) => layer === l).length);
}

describe("expertChoices", () => {
  test.each([2, 3])("allocated, are a global threshold with floor %i", (floor) => {
    for (let seed = 0; seed < 20; seed++) {
      const scores = randomScores(3, 6, seed);
      for (let total = 3 * floor; total <= 18; total++) {
        const { layers, size } = allocate(expertChoices(model, scores, { floor }), { budget: total });
        expect(layers.map(({ layer }) => layer)).toEqual([0, 2, 3]);
        expect(size).toBe(total);
        expect(layers.map(({ count }) => count)).toEqual(threshold(scores, total, floor));
      }
    }
  });

  test("compare scores as they are, by their share or by the best of the layer", () => {
    const scores = [
      [1, 1, 1, 1, 1, 1],
      [30, 20, 10, 5, 4, 3],
      [0.1, 0.001, 0.001, 0.001, 0.001, 0.001],
    ];
    const counts = (normalize: "none" | "sum" | "max", budget: number) =>
      allocate(expertChoices(model, scores, { normalize }), { budget }).layers.map(({ count }) => count);
    expect(counts("none", 10)).toEqual([2, 6, 2]);
    expect(counts("max", 10)).toEqual([6, 2, 2]);
    // Shares beyond the two best: 1/6 each; 10/72, 5/72 ...; 0.001/0.105 each.
    expect(counts("sum", 11)).toEqual([6, 3, 2]);
  });

  test("raise negative scores, so that the whole budget is used", () => {
    const scores = randomScores(3, 6, 7).map((row) => row.map((score) => score - 10));
    const { layers, size } = allocate(expertChoices(model, scores), { budget: 12 });
    expect(size).toBe(12);
    expect(layers.map(({ count }) => count)).toEqual(threshold(scores, 12, 2));
  });

  test("count bytes as they are stored", () => {
    const scores = randomScores(3, 6, 3);
    const full = modelSize(model).bytes;
    const choices = expertChoices(model, scores, { size: "bytes" });
    const whole = choices.reduce((sum, { options }) => sum + (options.at(-1)?.size ?? 0), 0);
    const allocation = allocate(choices, { budget: whole * 0.6 });
    const plan = expertPlan(model, allocation, scores);
    expect(full - modelSize(model, plan).bytes).toBe(whole - allocation.size);
    expect(allocation.size).toBeLessThanOrEqual(whole * 0.6);
    expect(allocation.layers.map(({ count }) => count)).toEqual(threshold(scores, Math.floor(18 * 0.6), 2));
  });

  test("respect what may be exported", () => {
    const scores = randomScores(3, 6, 4);
    const allows = (layer: { index: number }, keep: number) =>
      keep % 2 === 0 && (layer.index > 0 || keep < 5);
    const choices = expertChoices(model, scores, { allows });
    expect(choices.map(({ options }) => options.map(({ count }) => count))).toEqual([
      [2, 4],
      [2, 4, 6],
      [2, 4, 6],
    ]);
    const none = () => expertChoices(model, scores, { allows: () => false });
    expect(none).toThrow(expect.objectContaining({ code: "COPPICE_PLAN_KEEP" }));
    expect(() => expertChoices(model, scores, { floor: 7 })).toThrow(/from 7/);
  });

  test.each(["latent-attention", "low-rank-queries", "sigmoid-scores"] as const)(
    "keep to the router groups of %s, and are the best that do",
    (name) => {
      const { model } = randomModel(sampleShapes[name]);
      const layers = moeLayers(model);
      const experts = layers[0]?.feedForward.experts.length ?? 0;
      const scores = randomScores(layers.length, experts, 11);
      const choices = expertChoices(model, scores);
      const most = layers.length * experts;
      for (let budget = choices.length * experts * 0.6; budget <= most; budget += 1.5) {
        const allocation = allocate(choices, { budget });
        const plan = expertPlan(model, allocation, scores);
        expect(() => parsePlan(plan, model)).not.toThrow();
        const keptBy = (counts: readonly number[]) =>
          counts.reduce((sum, count, i) => {
            const { feedForward, index } = layers[i] as (typeof layers)[number];
            const kept = selectExperts(feedForward, scores[i] as number[], count, index);
            return sum + kept.reduce((total, expert) => total + (scores[i]?.[expert] as number), 0);
          }, 0);
        let best = 0;
        for (const counts of combinations(choices.map(({ options }) => options.map(({ count }) => count)))) {
          if (counts.reduce((a, b) => a + b) <= budget) best = Math.max(best, keptBy(counts));
        }
        expect(keptBy(allocation.layers.map(({ count }) => count))).toBeCloseTo(best, 9);
      }
    },
  );

  test("refuse scores that are not of the model", () => {
    const scores = randomScores(3, 6, 5);
    const refused = (rows: number[][], text: RegExp) =>
      expect(() => expertChoices(model, rows)).toThrow(
        expect.objectContaining({ code: "COPPICE_PLAN_INVALID", message: expect.stringMatching(text) }),
      );
    refused(scores.slice(1), /2 layers.*3 MoE layers/);
    refused([[1, 2], ...scores.slice(1)], /layer 0 has 6 experts and 2 scores/);
    refused([...scores.slice(0, 2), [1, 2, Number.NaN, 4, 5, 6]], /expert 2 of layer 3 is NaN/);
  });
});

describe("expertPlan", () => {
  test("keeps the best of every layer, as many as it got", () => {
    const scores = [
      [6, 5, 4, 3, 2, 1],
      [1, 2, 3, 4, 5, 6],
      [0, 9, 0, 9, 0, 9],
    ];
    const layers = [0, 2, 3].map((layer, i) => ({ layer, count: i + 2 }));
    const plan = expertPlan(model, { layers, cost: 0, size: 0 }, scores);
    expect(plan.layers.map(({ layer, experts }) => [layer, experts])).toEqual([
      [0, [0, 1]],
      [2, [3, 4, 5]],
      [3, [0, 1, 3, 5]],
    ]);
    expect(() => expertPlan(model, { layers: layers.slice(1), cost: 0, size: 0 }, scores)).toThrow(
      expect.objectContaining({ code: "COPPICE_PLAN_INVALID" }),
    );
  });
});

function* combinations(options: readonly (readonly number[])[]): Generator<number[]> {
  const [first, ...rest] = options;
  if (!first) {
    yield [];
    return;
  }
  for (const count of first) for (const more of combinations(rest)) yield [count, ...more];
}
