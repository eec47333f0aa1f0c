import {
  findExperts,
  groupsAfter,
  type MoeLayer,
  type MoeSpec,
  Rng,
  type RouterGroups,
  repairExperts,
  selectExperts,
  withTopK,
} from "@coppice/core";
import { describe, expect, test } from "vitest";
import { tinyModel } from "./tiny-model.js";

function layer(experts: number, topK: number, groups?: RouterGroups): MoeSpec {
  const [first] = tinyModel({ experts, topK }).model.layers;
  if (first?.feedForward.kind !== "moe") throw new Error("layer 0 has experts");
  const { feedForward } = first;
  return { ...feedForward, router: { ...feedForward.router, ...(groups && { groups }) } };
}

const top2: RouterGroups = { count: 4, keep: 2, score: "top2" };

/** All subsets of `size` of `count` experts. */
function* subsets(count: number, size: number, from = 0): Generator<number[]> {
  if (size === 0) yield [];
  else {
    for (let i = from; i < count; i++) for (const rest of subsets(count, size - 1, i + 1)) yield [i, ...rest];
  }
}

/** What a stock router of these experts needs, from the definitions of DeepSeek-V2 and V3. */
function works(experts: number[], size: number, { keep, score }: RouterGroups, topK: number): boolean {
  const sizes = new Map<number, number>();
  for (const e of experts) sizes.set(Math.floor(e / size), (sizes.get(Math.floor(e / size)) ?? 0) + 1);
  const counts = [...sizes.values()];
  if (counts.length <= keep) return true;
  const [first = 0] = counts;
  return counts.every((c) => c === first) && first >= (score === "top2" ? 2 : 1) && first * keep >= topK;
}

describe("selectExperts", () => {
  test("is the best choice that the groups allow", () => {
    const rng = Rng.fromSeed(3);
    for (const groups of [top2, { ...top2, score: "max" as const }, { ...top2, keep: 1 }]) {
      const spec = layer(12, 2, groups);
      for (const keep of [3, 4, 6, 8, 9]) {
        for (let i = 0; i < 5; i++) {
          const scores = Array.from({ length: 12 }, () => rng.normal());
          const total = (experts: number[]) => experts.reduce((a, e) => a + (scores[e] as number), 0);
          const all = [...subsets(12, keep)].filter((subset) => works(subset, 3, groups, 2));
          if (all.length === 0) {
            expect(() => selectExperts(spec, scores, keep, 0)).toThrow(
              expect.objectContaining({ code: "COPPICE_PLAN_GROUPS" }),
            );
            expect(findExperts(spec, scores, keep, 0)).toBeUndefined();
            continue;
          }
          const found = selectExperts(spec, scores, keep, 0);
          expect(found).toHaveLength(keep);
          // As many groups as possible, whatever the scores; one when no more are left than a token may use.
          const left = (experts: number[]) => groupsAfter(spec.router, experts, 0)?.count ?? 1;
          const most = Math.max(...all.map(left));
          expect(left(found)).toBe(most);
          expect(total(found)).toBeCloseTo(
            Math.max(...all.filter((one) => left(one) === most).map(total)),
            9,
          );
        }
      }
    }
  });

  test("is simply the highest scores without groups", () => {
    expect(selectExperts(layer(5, 2), [3, 1, 3, 9, 2], 3, 0)).toEqual([0, 2, 3]);
    expect(() => selectExperts(layer(5, 2), [3, 1, 3, 9, 2], 1, 0)).toThrow(
      expect.objectContaining({ code: "COPPICE_PLAN_KEEP" }),
    );
  });
});

test("a lowered top-k allows fewer experts", () => {
  const { feedForward } = withTopK(
    { ...(tinyModel().model.layers[0] as MoeLayer), feedForward: layer(5, 2) },
    1,
  );
  expect(selectExperts(feedForward, [3, 1, 3, 9, 2], 1, 0)).toEqual([3]);
});

test("numbers of experts that fit are named beside one that does not", () => {
  const spec = layer(12, 2, { count: 4, keep: 1, score: "top2" });
  expect(() => selectExperts(spec, new Float64Array(12), 5, 0)).toThrow(
    expect.objectContaining({ code: "COPPICE_PLAN_GROUPS", hint: "4 or 6 fit" }),
  );
});

describe("groupsAfter", () => {
  test("says which groups a smaller router has, and names why there are none", () => {
    const spec = layer(12, 2, top2);
    expect(groupsAfter(spec.router, [0, 1, 3, 4, 6, 7, 9, 10], 0)).toEqual(top2);
    expect(groupsAfter(spec.router, [0, 1, 3, 4, 6, 8], 0)).toEqual({ ...top2, count: 3 });
    expect(groupsAfter(spec.router, [0, 1, 2, 6], 0)).toBeUndefined();
    expect(groupsAfter(layer(12, 2).router, [0, 1], 0)).toBeUndefined();
    for (const experts of [
      [0, 3, 6],
      [0, 1, 3, 4, 6],
    ]) {
      expect(() => groupsAfter(spec.router, experts, 7)).toThrow(
        expect.objectContaining({
          code: "COPPICE_PLAN_GROUPS",
          message: expect.stringMatching(/layer 7.*best 2 groups/s),
        }),
      );
    }
  });
});

describe("repairExperts", () => {
  test("changes as little as possible, and nothing that works", () => {
    const spec = layer(12, 2, top2);
    for (const subset of subsets(12, 6)) {
      const repaired = repairExperts(spec, subset, 0);
      const kept = repaired.filter((expert) => subset.includes(expert)).length;
      const groups = new Set(subset.map((expert) => Math.floor(expert / 3)));
      // Six of twelve are three groups of two, so six in two groups, which would work, become those as well.
      if (works(subset, 3, top2, 2) && groups.size === 3) expect(repaired).toEqual(subset);
      else expect(kept).toBeGreaterThanOrEqual(3);
      expect(works(repaired, 3, top2, 2)).toBe(true);
    }
  });
});
