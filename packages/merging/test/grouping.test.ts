import { createPlan, type LayerPlan, parsePlan } from "@coppice/core";
import { beforeAll, describe, expect, test } from "vitest";
import { merge } from "./merge.js";
import {
  apart,
  atUnitLength,
  cosine,
  families,
  type SlowExperts,
  type SlowModel,
  slowModel,
} from "./slow-layers.js";
import { expectRow } from "./slow-merge.js";

const weightings = ["frequency", "uniform", "saliency"] as const;

describe.each(families)("groups on %s", (name) => {
  let slow: SlowModel;

  beforeAll(async () => {
    slow = await slowModel(name);
  });

  const request = (keep: number) => ({ ...slow.source, statistics: slow.statistics, keep });
  /** The layer's router groups: experts 2g and 2g + 1 in group g; else all in one. */
  const grouped = name.startsWith("deepseek");
  const routerGroup = (expert: number) => (grouped ? Math.floor(expert / 2) : 0);
  const column = ({ logits }: SlowExperts, expert: number) => logits.map((z) => z[expert] as number);
  const logitCosine = (layer: SlowExperts, i: number, j: number) =>
    cosine(column(layer, i), column(layer, j));

  function expectPlans(
    plans: readonly LayerPlan[],
    weights: (typeof weightings)[number],
    /** Groups of a layer by leader. */
    groups: (layer: SlowExperts, experts: readonly number[]) => Map<number, number[]>,
  ) {
    const { model } = slow.source;
    expect(parsePlan(createPlan(model, plans), model).layers).toHaveLength(plans.length);
    for (const [i, { experts, merge: rows, units }] of plans.entries()) {
      expect(units).toBeUndefined();
      const layer = slow.layers[i] as SlowExperts;
      const expected = groups(layer, experts);
      expect(experts).toEqual([...expected.keys()].sort((a, b) => a - b));
      const by = { frequency: layer.usage, uniform: layer.usage.map(() => 1), saliency: layer.saliency };
      experts.forEach((leader, slot) => {
        expectRow(rows?.[slot], expected.get(leader) as number[], by[weights]);
      });
    }
  }

  /** The `keep` first experts of an order, as the router's groups allow. */
  function best(scores: readonly number[], keep: number, kept: readonly number[]) {
    const order = scores
      .map((_, e) => e)
      .sort((a, b) => (scores[b] as number) - (scores[a] as number) || a - b);
    // Which experts fit router groups is tested with selectExperts of core.
    return grouped ? order.filter((e) => kept.includes(e)) : order.slice(0, keep);
  }

  test.each(weightings)("m-smoe, weights %s", async (weights) => {
    const plans = await merge("m-smoe", request(4), { weights });
    expectPlans(plans, weights, (layer, kept) => {
      const dominant = best(layer.usage, 4, kept);
      const groups = new Map(dominant.map((leader) => [leader, [leader]]));
      layer.usage.forEach((_, expert) => {
        if (dominant.includes(expert)) return;
        const ascending = [...dominant].sort((a, b) => a - b);
        const to = (leader: number) => logitCosine(layer, expert, leader);
        groups.get(ascending.reduce((x, y) => (to(y) > to(x) ? y : x)))?.push(expert);
      });
      return groups;
    });
  });

  /** Clusters anew from all their members in every step, within router groups. */
  function cluster(
    layer: SlowExperts,
    kept: readonly number[],
    keep: number,
    between: (a: readonly number[], b: readonly number[]) => number,
  ) {
    const wanted = (group: number) => kept.filter((expert) => routerGroup(expert) === group).length;
    let clusters = layer.usage
      .map((_, expert) => [expert])
      .filter(([e]) => wanted(routerGroup(e as number)) > 0);
    const homeless = layer.usage.flatMap((_, e) => (wanted(routerGroup(e)) > 0 ? [] : [e]));
    while (clusters.length > keep) {
      const pairs = clusters.flatMap((a, i) =>
        clusters.slice(i + 1).flatMap((b) => {
          const group = routerGroup(a[0] as number);
          const count = clusters.filter(([e]) => routerGroup(e as number) === group).length;
          if (group !== routerGroup(b[0] as number) || count <= wanted(group)) return [];
          return [{ a, b, d: between(a, b) }];
        }),
      );
      const next = pairs.reduce((x, y) => (y.d < x.d ? y : x));
      clusters = [...clusters.filter((c) => c !== next.a && c !== next.b), [...next.a, ...next.b]];
    }
    const leaders = clusters.map((members) =>
      [...members]
        .sort((a, b) => a - b)
        .reduce((x, y) => ((layer.usage[y] as number) > (layer.usage[x] as number) ? y : x)),
    );
    const groups = new Map(clusters.map((members, i) => [leaders[i] as number, members]));
    for (const expert of homeless) {
      const to = (leader: number) => between([expert], [leader]);
      groups.get(leaders.reduce((x, y) => (to(y) < to(x) ? y : x)))?.push(expert);
    }
    return groups;
  }

  const linked = (all: readonly number[], linkage: string) => {
    if (linkage === "single") return Math.min(...all);
    if (linkage === "complete") return Math.max(...all);
    return all.reduce((sum, value) => sum + value, 0) / all.length;
  };

  test.each(["average", "single", "complete"] as const)("logit-clusters, %s linkage", async (linkage) => {
    const plans = await merge("logit-clusters", request(4), { linkage, weights: "uniform" });
    expectPlans(plans, "uniform", (layer, kept) =>
      cluster(layer, kept, 4, (a, b) =>
        linked(
          a.flatMap((i) => b.map((j) => (1 - logitCosine(layer, i, j)) / 2)),
          linkage,
        ),
      ),
    );
  });

  test.each(["average", "single", "complete", "ward"] as const)("hc-smoe, %s linkage", async (linkage) => {
    const plans = await merge("hc-smoe", request(4), { linkage });
    expectPlans(plans, "frequency", (layer, kept) => {
      const mean = layer.outputs.map((tokens) =>
        (tokens[0] as readonly number[]).map(
          (_, h) => tokens.reduce((sum, f) => sum + (f[h] as number), 0) / tokens.length,
        ),
      );
      const centre = (members: readonly number[]) =>
        (mean[0] as number[]).map((_, h) =>
          members.reduce((sum, e) => sum + (mean[e]?.[h] as number) / members.length, 0),
        );
      return cluster(layer, kept, 4, (a, b) =>
        linkage === "ward"
          ? Math.sqrt((2 * a.length * b.length) / (a.length + b.length)) * apart(centre(a), centre(b))
          : linked(
              a.flatMap((i) => b.map((j) => apart(mean[i] as number[], mean[j] as number[]))),
              linkage,
            ),
      );
    });
  });

  test.each([
    [2, 4],
    [3, 4],
    [16, 4],
  ])("ream, groups of at most %i", async (capacity, keep) => {
    const plans = await merge("ream", request(keep), { capacity, align: "none" });
    expectPlans(plans, "saliency", (layer, kept) => {
      const all = layer.usage.map((_, e) => e);
      const columns = all.map((e) => atUnitLength(column(layer, e)));
      const router = (i: number, j: number) => apart(columns[i] as number[], columns[j] as number[]);
      const farthest = Math.max(...all.flatMap((i) => all.map((j) => router(i, j))));
      const distance = (i: number, j: number) => {
        const [a, b] = [layer.outputs[i] ?? [], layer.outputs[j] ?? []];
        const alike = a.reduce((sum, f, t) => sum + (cosine(f, b[t] as number[]) + 1) / 2, 0) / a.length;
        return 1 - (alike + 1 - router(i, j) / farthest) / 2;
      };
      const centroids = best(layer.saliency, keep, kept);
      const groups = new Map(centroids.map((leader) => [leader, [leader]]));
      let free = all.filter((e) => !centroids.includes(e));
      for (const members of groups.values()) {
        while (members.length < capacity && free.length > 0) {
          const leader = members[0] as number;
          const next = free.reduce((x, y) => (distance(leader, y) < distance(leader, x) ? y : x));
          members.push(next);
          free = free.filter((e) => e !== next);
        }
      }
      return groups;
    });
  });

  test("average groups by router rows, without statistics and with", async () => {
    const rowOf = (layer: SlowExperts, expert: number) => {
      const { weight } = layer.layer.feedForward.router;
      const values = slow.source.tensors.get(weight.name) as Float32Array;
      const size = weight.shape[1] as number;
      return [...values.subarray(expert * size, (expert + 1) * size)];
    };
    const far = (layer: SlowExperts, i: number, j: number) =>
      apart(atUnitLength(rowOf(layer, i)), atUnitLength(rowOf(layer, j)));
    const byRows = (layer: SlowExperts, kept: readonly number[]) =>
      cluster(layer, kept, 4, (a, b) =>
        linked(
          a.flatMap((i) => b.map((j) => far(layer, i, j))),
          "average",
        ),
      );
    const used = await merge("average", request(4), { weights: "frequency" });
    expectPlans(used, "frequency", byRows);
    if (grouped) return;
    const plain = await merge("average", { ...slow.source, keep: 4 });
    expectPlans(plain, "uniform", (layer, kept) => {
      const groups = [...byRows(layer, kept).values()];
      const toAll = (expert: number, members: readonly number[]) =>
        members.reduce((sum, other) => sum + far(layer, expert, other), 0);
      return new Map(
        groups.map((members) => {
          const ascending = [...members].sort((a, b) => a - b);
          return [
            ascending.reduce((x, y) => (toAll(y, members) < toAll(x, members) - 1e-12 ? y : x)),
            members,
          ];
        }),
      );
    });
  });

  test("average deals random groups of like sizes", async () => {
    const plans = await merge("average", { ...slow.source, keep: 4 }, { grouping: "random" });
    const other = await merge("average", { ...slow.source, keep: 4 }, { grouping: "random" });
    expect(plans).toEqual(other);
    for (const { experts, merge: rows = [] } of plans) {
      rows.forEach((row, slot) => {
        expect(row.filter((weight) => weight === 0.5)).toHaveLength(2);
        expect(row[experts[slot] as number]).toBe(0.5);
      });
      expect(rows[0]?.map((_, e) => rows.reduce((sum, row) => sum + (row[e] as number), 0))).toEqual(
        new Array(8).fill(0.5),
      );
    }
  });
});
