import { reference } from "@coppice/backend-reference";
import { collectStatistics } from "@coppice/calibrate";
import {
  combinations,
  createRegistry,
  findExperts,
  type MoeLayer,
  moeLayers,
  planFromScores,
  type Statistics,
} from "@coppice/core";
import type { NaeeOptions } from "@coppice/criteria";
import type { MemoryModel } from "@coppice/plugin-kit";
import { fixtureNames } from "@coppice/plugin-kit/node";
import { beforeAll, describe, expect, test } from "vitest";
import { fixtureModel, score } from "./score.js";
import { slowBlockLoss } from "./slow-block.js";

const keep = 4;

describe.each(fixtureNames)("naee on %s", (name) => {
  let source: MemoryModel;
  let statistics: Statistics;
  /** The one that is looked at: another one in every model. */
  let layer: MoeLayer;
  let at: number;
  let lossOf: (kept: readonly number[]) => number;
  /** All that the router can be left with. */
  let possible: number[][];

  beforeAll(async () => {
    source = await fixtureModel(name);
    const layers = moeLayers(source.model);
    at = fixtureNames.indexOf(name) % layers.length;
    layer = layers[at] as MoeLayer;
    const ids = Array.from({ length: 7 }, (_, i) => (5 * i * i + i + 3) % source.model.vocabSize);
    const backend = await createRegistry([reference]).create("backend", "reference", {}, undefined);
    await using runner = await backend.load(source);
    const sample = { limit: ids.length, with: ["grams"] } as const;
    statistics = await collectStatistics({ runner, sequences: [Int32Array.from(ids)], name: "test", sample });
    possible = [...combinations(allExperts(), keep)].filter((set) => fits(layer, set));
    lossOf = remembering(slowBlockLoss(source, ids, layer.index));
  });

  const allExperts = () => [...layer.feedForward.experts.keys()];

  /** What is kept of the layer, and its scores. */
  async function naee(options: NaeeOptions, asked?: number) {
    const request = { ...source, statistics, ...(asked !== undefined && { keep: asked }) };
    const scores = await score("naee", request, options);
    const { layers } = planFromScores(source.model, scores, keep);
    return { scores: [...(scores[at] as Float64Array)], kept: layers[at]?.experts };
  }

  /** Scores are losses of what is left when an expert goes, as far as they rise. */
  function expectLosses(scores: readonly number[]): void {
    const order = [...scores.keys()].sort((a, b) => (scores[a] as number) - (scores[b] as number));
    let least = 0;
    for (const [i, expert] of order.slice(0, -1).entries()) {
      least = Math.max(least, lossOf(order.slice(i + 1)));
      const off = Math.abs((scores[expert] as number) - least);
      // Gate weights are rounded to float32, which counts where nothing is lost.
      const rounding = 1e-7 * Math.max(...scores);
      expect(off, `${expert} in ${order}`).toBeLessThanOrEqual(1e-5 * least + rounding);
    }
  }

  test("keeps the set with the least loss of all that the router can be left with", async () => {
    const least = possible.reduce((a, b) => (lossOf(b) < lossOf(a) ? b : a));
    const exact = await naee({ method: "exact" }, keep);
    expect(exact.kept).toEqual(least);
    expectLosses(exact.scores);
    expect(await naee({}, keep)).toEqual(exact);
  });

  test("drops one expert after the other", async () => {
    let left = allExperts();
    while (left.length > keep) {
      const next = left.map((expert) => left.filter((other) => other !== expert));
      left = best(next.filter((set) => possible.some((whole) => whole.every((e) => set.includes(e)))));
    }
    const backward = await naee({ method: "backward" }, keep);
    expect(backward.kept).toEqual(left);
    expectLosses(backward.scores);
    expect(await naee({ subsets: 1 }, keep)).toEqual(backward);
    if (!layer.feedForward.router.groups) expect(await naee({})).toEqual(backward);
  });

  test("adds one expert after the other", async () => {
    let chosen: number[] = [];
    while (chosen.length < keep) {
      const others = allExperts().filter((expert) => !chosen.includes(expert));
      const next = others.map((expert) => [...chosen, expert].sort((a, b) => a - b));
      chosen = best(next.filter((set) => possible.some((whole) => set.every((e) => whole.includes(e)))));
    }
    const forward = await naee({ method: "forward" }, keep);
    expect(forward.kept).toEqual(chosen);
    expectLosses(forward.scores);
  });

  function best(sets: readonly number[][]): number[] {
    return sets.reduce((a, b) => (lossOf(b) < lossOf(a) ? b : a));
  }
});

/** Whether `selectExperts` would leave the router with these experts. */
function fits({ feedForward, index }: MoeLayer, set: readonly number[]): boolean {
  const scores = feedForward.experts.map((_, expert) => (set.includes(expert) ? 1 : 0));
  return String(findExperts(feedForward, scores, set.length, index)) === String(set);
}

/** Every set is run once, whatever order its experts are named in. */
function remembering(lossOf: (kept: readonly number[]) => number): (kept: readonly number[]) => number {
  const known = new Map<string, number>();
  return (kept) => {
    const sorted = [...kept].sort((a, b) => a - b);
    const key = String(sorted);
    const loss = known.get(key) ?? lossOf(sorted);
    known.set(key, loss);
    return loss;
  };
}
