import {
  combinations,
  findExperts,
  type MoeLayer,
  moeLayers,
  type RouterGroups,
  selectExperts,
} from "@coppice/core";
import { randomModel } from "@coppice/plugin-kit";
import { describe, expect, test } from "vitest";
import { KeepRule } from "../src/keep-rule.js";

const [plain] = moeLayers(randomModel({ seed: 4, experts: 8, topK: 2 }).model) as [MoeLayer];
const experts = [...plain.feedForward.experts.keys()];

const routers: Record<string, RouterGroups | undefined> = {
  "no groups": undefined,
  "one group": { count: 1, keep: 1, score: "max" },
  "two of four": { count: 4, keep: 2, score: "max" },
  "two of four by their best two": { count: 4, keep: 2, score: "top2" },
  "one of two": { count: 2, keep: 1, score: "top2" },
};

describe.each(Object.keys(routers))("%s", (name) => {
  const groups = routers[name];
  const { feedForward } = plain;
  const router = { ...feedForward.router, ...(groups && { groups }) };
  const layer: MoeLayer = { ...plain, feedForward: { ...feedForward, router } };
  const indicator = (set: readonly number[]) => experts.map((expert) => (set.includes(expert) ? 1 : 0));
  const possible = (keep: number) =>
    [...combinations(experts, keep)].filter(
      (set) => String(findExperts(layer.feedForward, indicator(set), keep, 0)) === String(set),
    );

  test.each([2, 3, 4, 5, 6, 7, 8])("keeps %i", (keep) => {
    const wanted = possible(keep);
    if (wanted.length === 0) {
      const codes = expect.objectContaining({ code: "COPPICE_PLAN_GROUPS" });
      expect(() => new KeepRule(layer, keep)).toThrow(codes);
      return;
    }
    const rule = new KeepRule(layer, keep);
    const sets = [...rule.sets()];
    expect(sets.map(String).sort()).toEqual(wanted.map(String).sort());
    for (let bits = 0; bits < 2 ** experts.length; bits++) {
      const set = experts.filter((expert) => (bits >> expert) & 1);
      const inside = wanted.some((whole) => set.every((expert) => whole.includes(expert)));
      const around = wanted.some((whole) => whole.every((expert) => set.includes(expert)));
      if (set.length <= keep) expect(rule.leadsUp(set), `${set}`).toBe(inside);
      if (set.length >= keep) expect(rule.leadsDown(set), `${set}`).toBe(around);
    }
    // Scores that are all higher inside a set than outside lead to it.
    for (const set of sets) {
      const scores = experts.map((expert) => (set.includes(expert) ? 9 + expert : expert));
      expect(selectExperts(layer.feedForward, scores, keep, 0)).toEqual(set);
    }
  });
});
