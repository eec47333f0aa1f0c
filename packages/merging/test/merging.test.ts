import { reference } from "@coppice/backend-reference";
import { collectStatistics } from "@coppice/calibrate";
import {
  createPlan,
  createRegistry,
  type LayerPlan,
  type MergerPlugins,
  type MoeModel,
  moeLayers,
  parsePlan,
  Rng,
  type Statistics,
} from "@coppice/core";
import { logitClusters, mSmoe } from "@coppice/merging";
import { intoMemory, slowForward } from "@coppice/plugin-kit";
import { loadFixture } from "@coppice/plugin-kit/node";
import { beforeAll, describe, expect, test } from "vitest";

const registry = createRegistry([mSmoe, logitClusters, reference]);

async function merge<N extends keyof MergerPlugins>(
  name: N,
  request: { model: MoeModel; statistics?: Statistics; keep: number },
  options: MergerPlugins[N] = {} as MergerPlugins[N],
): Promise<LayerPlan[]> {
  const merger = await registry.create("merger", name, options as never, undefined);
  return merger.merge({ rng: Rng.fromSeed(1), ...request });
}

/** One of each routing order, the third with groups. */
const families = ["mixtral", "olmoe", "deepseek_v3", "gpt_oss", "phimoe", "llama4_text"] as const;

describe.each(families)("mergers on %s", (name) => {
  let model: MoeModel;
  let statistics: Statistics;
  /** [MoE layer][token][expert] */
  let logits: number[][][];
  /** [MoE layer][expert] */
  let usage: number[][];

  beforeAll(async () => {
    const fixture = await loadFixture(name);
    model = fixture.model;
    const { sequences } = fixture.golden;
    const backend = await registry.create("backend", "reference", {}, undefined);
    const runner = await backend.load(fixture);
    statistics = await collectStatistics({ runner, sequences, name });
    await runner.dispose();
    const source = await intoMemory(model, fixture.weights);
    const results = sequences.map((ids) => slowForward(source, [...ids]));
    const layers = moeLayers(model);
    logits = layers.map((_, i) =>
      results.flatMap((result) => (result.layers[i]?.routerLogits ?? []).map((z) => [...z])),
    );
    usage = layers.map(({ feedForward }, i) =>
      feedForward.experts.map(
        (_, expert) =>
          results
            .flatMap((result) => (result.layers[i]?.choices ?? []).flat())
            .filter(({ slot }) => slot === expert).length,
      ),
    );
  });

  /** (cos + 1) / 2 of two columns of logits, from the tokens themselves. */
  const similarity = (layer: number, i: number, j: number) => {
    const column = (e: number) => (logits[layer] as number[][]).map((row) => row[e] as number);
    const [a, b] = [column(i), column(j)];
    const inner = a.reduce((sum, value, t) => sum + value * (b[t] as number), 0);
    return (inner / (Math.hypot(...a) * Math.hypot(...b)) + 1) / 2;
  };

  const expectRow = (found: readonly number[], expected: readonly number[]) => {
    expect(found.reduce((a, b) => a + b, 0)).toBeCloseTo(1, 12);
    found.forEach((value, i) => {
      expect(Math.abs(value - (expected[i] as number))).toBeLessThan(1e-6);
    });
  };

  test.each(["frequency", "uniform"] as const)(
    "m-smoe, weights %s, is what its definition says",
    async (weights) => {
      const plans = await merge("m-smoe", { model, statistics, keep: 4 }, { weights });
      expect(parsePlan(createPlan(model, plans), model).layers).toHaveLength(plans.length);
      plans.forEach(({ experts, merge: rows = [] }, layer) => {
        const counts = usage[layer] as number[];
        if (name !== "deepseek_v3") {
          const kept = Math.min(...experts.map((e) => counts[e] as number));
          const dropped = counts.filter((_, e) => !experts.includes(e));
          expect(kept).toBeGreaterThanOrEqual(Math.max(...dropped));
        }
        const leaderOf = counts.map((_, e) =>
          experts.includes(e)
            ? e
            : experts.reduce((best, leader) =>
                similarity(layer, e, leader) > similarity(layer, e, best) ? leader : best,
              ),
        );
        experts.forEach((leader, slot) => {
          const members = counts.map((count, e) =>
            leaderOf[e] === leader ? (weights === "uniform" ? 1 : count) : 0,
          );
          const total = members.reduce((a, b) => a + b, 0);
          const alone = counts.map((_, e) => (leaderOf[e] === leader ? 1 : 0) as number);
          const expected =
            total > 0
              ? members.map((m) => m / total)
              : alone.map((m) => m / alone.reduce((a, b) => a + b, 0));
          expectRow(rows[slot] as number[], expected);
        });
      });
    },
  );

  test.each(["average", "single", "complete"] as const)(
    "logit-clusters, %s linkage, is what its definition says",
    async (linkage) => {
      if (name === "deepseek_v3") {
        await expect(merge("logit-clusters", { model, statistics, keep: 4 })).rejects.toMatchObject({
          code: "COPPICE_PLAN_GROUPS",
        });
        return;
      }
      const plans = await merge(
        "logit-clusters",
        { model, statistics, keep: 3 },
        { linkage, weights: "uniform" },
      );
      plans.forEach(({ experts, merge: rows = [] }, layer) => {
        const counts = usage[layer] as number[];
        // Every union anew from all pairs of members.
        let clusters = counts.map((_, e) => [e]);
        const distance = (a: number[], b: number[]) => {
          const all = a.flatMap((i) => b.map((j) => 1 - similarity(layer, i, j)));
          if (linkage === "single") return Math.min(...all);
          if (linkage === "complete") return Math.max(...all);
          return all.reduce((sum, value) => sum + value, 0) / all.length;
        };
        while (clusters.length > 3) {
          const pairs = clusters.flatMap((a, i) =>
            clusters.slice(i + 1).map((b) => ({ a, b, d: distance(a, b) })),
          );
          const best = pairs.reduce((x, y) => (y.d < x.d ? y : x));
          clusters = [...clusters.filter((c) => c !== best.a && c !== best.b), [...best.a, ...best.b]];
        }
        expect(experts).toHaveLength(3);
        experts.forEach((leader, slot) => {
          const members = clusters.find((c) => c.includes(leader)) as number[];
          expect(counts[leader]).toBe(Math.max(...members.map((e) => counts[e] as number)));
          expectRow(
            rows[slot] as number[],
            counts.map((_, e) => (members.includes(e) ? 1 / members.length : 0)),
          );
        });
      });
    },
  );
});

test("mergers refuse what they cannot do by name", async () => {
  const { model } = await loadFixture("mixtral");
  await expect(merge("m-smoe", { model, keep: 4 })).rejects.toMatchObject({ code: "COPPICE_STATS_MISSING" });
  const other: Statistics = { model: "other", tokens: 0, layers: [] };
  await expect(merge("m-smoe", { model, statistics: other, keep: 4 })).rejects.toMatchObject({
    code: "COPPICE_STATS_MODEL",
  });
});

test("groups without a single routed token weigh their members alike, and too few experts are refused", async () => {
  const { model } = await loadFixture("mixtral");
  const layers = moeLayers(model).map(({ index, feedForward }) => {
    const sums = () => new Float64Array(feedForward.experts.length);
    const count = sums();
    count[0] = 5;
    const logitGram = Float64Array.from({ length: 64 }, (_, i) => (i % 9 === 0 ? 1 : 0.5));
    return { layer: index, tokens: 5, count, logitGram } as Statistics["layers"][number];
  });
  const statistics: Statistics = { model: model.fingerprint, tokens: 5, layers };
  const [plan] = await merge("m-smoe", { model, statistics, keep: 2 });
  // Expert 1 is dominant by the tie of unused experts; all others are equally similar and join the first.
  expect(plan?.experts).toEqual([0, 1]);
  expect(plan?.merge).toEqual([
    [1, 0, 0, 0, 0, 0, 0, 0],
    [0, 1, 0, 0, 0, 0, 0, 0],
  ]);
  const [halves] = await merge("logit-clusters", { model, statistics, keep: 2 });
  expect(halves?.merge?.every((row) => Math.abs(row.reduce((a, b) => a + b, 0) - 1) < 1e-12)).toBe(true);
  await expect(merge("logit-clusters", { model, statistics, keep: 1 })).rejects.toMatchObject({
    code: "COPPICE_PLAN_KEEP",
  });
});
