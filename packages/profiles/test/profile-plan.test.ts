import { type MoeModel, modelSize, moeLayers, parsePlan, Rng } from "@coppice/core";
import { randomModel, sampleShapes } from "@coppice/plugin-kit";
import {
  type ExpertLists,
  expectedDrop,
  type Pick,
  type Profile,
  profilePlan,
  uniteProfiles,
  wideningPlans,
} from "@coppice/profiles";
import { describe, expect, test } from "vitest";
import { expectCode } from "./models.js";

const plain = randomModel({ experts: 8, layers: 3, denseLayers: [0] }).model;
/** 12 experts in 3 groups, of which a token uses 2; top-3. */
const grouped = randomModel(sampleShapes["low-rank-queries"]).model;

function randomLists(model: MoeModel, seed: number): ExpertLists {
  const rng = Rng.fromSeed(seed);
  return moeLayers(model).map(({ feedForward: { experts } }) => {
    const mass = Float64Array.from(experts, () => rng.uniform());
    const total = mass.reduce((sum, value) => sum + value, 0);
    return {
      ranking: rng.shuffle(experts.map((_, expert) => expert)),
      probability: Float32Array.from(mass, (value) => value / total),
    };
  });
}

function profile(name: string, layers: ExpertLists): Profile {
  return { name, general: false, criterion: "test", tokens: 1, vector: new Float32Array(1), layers };
}

const slowDrop = (lists: ExpertLists, kept: readonly (readonly number[])[]) => {
  const drops = lists.map(({ probability }, i) =>
    Array.from(probability).reduce((sum, p, expert) => sum + (kept[i]?.includes(expert) ? 0 : p), 0),
  );
  return drops.reduce((sum, drop) => sum + drop, 0) / drops.length;
};

describe("uniteProfiles", () => {
  test("takes the experts of all lists in turn, each where it comes first", () => {
    const layer = (ranking: number[], probability: number[]) => [
      { ranking, probability: Float32Array.from(probability) },
    ];
    const united = uniteProfiles([
      profile("a", layer([3, 1, 0, 2], [0, 0.25, 0.25, 0.5])),
      profile("b", layer([1, 2, 3, 0], [0.5, 0.5, 0, 0])),
    ]);
    expect(united[0]?.ranking).toEqual([3, 1, 2, 0]);
    expect([...(united[0]?.probability ?? [])]).toEqual([0.25, 0.375, 0.125, 0.25]);
  });

  test("leaves a single profile as it is, and needs one", async () => {
    const lists = randomLists(plain, 1);
    expect(uniteProfiles([profile("a", lists)])).toEqual(lists);
    await expectCode(() => uniteProfiles([]), "COPPICE_USAGE");
  });
});

describe("profilePlan", () => {
  test("keeps the first experts of every list", () => {
    const lists = randomLists(plain, 2);
    const plan = profilePlan(plain, lists, { keep: 3 });
    expect(plan.layers.map(({ layer }) => layer)).toEqual([1, 2]);
    plan.layers.forEach(({ experts }, i) => {
      expect(experts).toEqual(lists[i]?.ranking.slice(0, 3).sort((a, b) => a - b));
    });
    expect(expectedDrop(lists, plan)).toBeCloseTo(
      slowDrop(
        lists,
        plan.layers.map(({ experts }) => experts),
      ),
      6,
    );
  });

  test("keeps as many experts of every group where there are groups", () => {
    const plan = profilePlan(grouped, randomLists(grouped, 3), { keep: 6 });
    expect(() => parsePlan(plan, grouped)).not.toThrow();
    for (const { experts } of plan.layers) {
      expect([0, 1, 2].map((group) => experts.filter((e) => Math.floor(e / 4) === group).length)).toEqual([
        2, 2, 2,
      ]);
    }
  });

  test("fills a budget of bytes, with as many experts in every layer or with the least mass dropped", () => {
    const lists = randomLists(plain, 4);
    const size = (keep: number) => modelSize(plain, profilePlan(plain, lists, { keep })).bytes;
    for (let keep = 2; keep <= 8; keep++) {
      expect(profilePlan(plain, lists, { bytes: size(keep) })).toEqual(profilePlan(plain, lists, { keep }));
    }
    expect(profilePlan(plain, lists, { bytes: size(5) - 1 })).toEqual(profilePlan(plain, lists, { keep: 4 }));
    const bytes = size(4);
    const free = profilePlan(plain, lists, { bytes, uniform: false });
    expect(modelSize(plain, free).bytes).toBeLessThanOrEqual(bytes);
    // All ways to share out 8 experts over the two layers.
    const best = Math.min(
      ...[2, 3, 4, 5, 6].map((first) =>
        slowDrop(lists, [
          lists[0]?.ranking.slice(0, first) ?? [],
          lists[1]?.ranking.slice(0, 8 - first) ?? [],
        ]),
      ),
    );
    expect(expectedDrop(lists, free)).toBeCloseTo(best, 6);
  });

  test("refuses what does not fit", async () => {
    const lists = randomLists(plain, 5);
    await expectCode(() => profilePlan(plain, lists, { keep: 1 }), "COPPICE_PLAN_KEEP", "top-k");
    await expectCode(() => profilePlan(plain, lists, { keep: 9 }), "COPPICE_PLAN_KEEP");
    await expectCode(
      () => profilePlan(plain, lists, { bytes: 10 }),
      "COPPICE_PLAN_KEEP",
      "without any expert",
    );
    await expectCode(() => profilePlan(grouped, lists, { keep: 6 }), "COPPICE_PROFILE_MODEL");
    await expectCode(
      () => profilePlan(grouped, randomLists(grouped, 1), { keep: 11 }),
      "COPPICE_PLAN_GROUPS",
    );
  });
});

describe("wideningPlans", () => {
  const pickOf = (model: MoeModel): Pick => {
    const [first, second, third] = ["a", "b", "c"].map((name, i) =>
      profile(name, randomLists(model, 10 + i)),
    );
    const nearest = [first, second, third].map((one, i) => ({ profile: one as Profile, distance: i / 10 }));
    return { kind: "nearest", profiles: [first as Profile], margin: 0.5, nearest };
  };

  test.each([
    ["plain", plain, 3],
    ["grouped", grouped, 6],
  ] as const)("only add experts until all are there: %s", (_, model, keep) => {
    for (const by of ["experts", "profiles"] as const) {
      const plans = [...wideningPlans(model, pickOf(model), { size: { keep }, by, step: 1 })];
      expect(plans.length).toBeGreaterThan(2);
      expect(plans[0]).toEqual(profilePlan(model, pickOf(model).profiles[0]?.layers ?? [], { keep }));
      const all = moeLayers(model).map(({ feedForward }) => feedForward.experts.map((_, expert) => expert));
      const kept = plans.map(({ layers }) => layers.map(({ experts }) => experts));
      kept.slice(1).forEach((layers, i) => {
        layers.forEach((experts, layer) => {
          for (const expert of kept[i]?.[layer] ?? []) expect(experts).toContain(expert);
        });
        expect(layers.flat().length).toBeGreaterThan(kept[i]?.flat().length ?? 0);
      });
      expect(kept.at(-1)).toEqual(all);
      for (const plan of plans) expect(() => parsePlan(plan, model)).not.toThrow();
    }
  });

  test("add the next experts of the list, or those of the next profile", () => {
    const pick = pickOf(plain);
    const [list, next] = pick.nearest.map(({ profile: { layers } }) => layers[0]?.ranking ?? []);
    const sorted = (experts: readonly number[]) => [...new Set(experts)].sort((a, b) => a - b);
    const [, byExperts] = wideningPlans(plain, pick, { size: { keep: 3 }, step: 2 });
    expect(byExperts?.layers[0]?.experts).toEqual(sorted(list?.slice(0, 5) ?? []));
    const [, byProfiles] = wideningPlans(plain, pick, { size: { keep: 3 }, by: "profiles" });
    expect(byProfiles?.layers[0]?.experts).toEqual(
      sorted([...(list ?? []).slice(0, 3), ...(next ?? []).slice(0, 3)]),
    );
  });
});
