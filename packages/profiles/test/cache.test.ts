import { createPlan, modelSize, moeLayers, Rng } from "@coppice/core";
import { randomModel } from "@coppice/plugin-kit";
import {
  bendTrace,
  type CachePolicy,
  cacheHits,
  type ExpertLists,
  noExpert,
  planMemory,
  type RoutingTrace,
  simulateCache,
} from "@coppice/profiles";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { traceHeader } from "../src/routing-trace.js";
import { expectCode } from "./models.js";

const hitsOf = (hits: Uint8Array) => hits.reduce((sum, hit) => sum + hit, 0);
const run = (uses: readonly number[], capacity: number, sizes: readonly number[] = Array(8).fill(1)) => ({
  sizes,
  capacity,
  uses: Int32Array.from(uses),
  times: uses.map((_, i) => i),
});
const options = { halfLife: Number.POSITIVE_INFINITY, learned: new Float64Array(8) };

/** The most hits of any way to evict, by trying all: sets of items as bits. Every item used is inside afterwards. */
function bestHits(uses: readonly number[], capacity: number): number {
  let states = new Map([[0, 0]]);
  for (const item of uses) {
    const next = new Map<number, number>();
    const reach = (set: number, hits: number) => next.set(set, Math.max(hits, next.get(set) ?? 0));
    for (const [set, hits] of states) {
      const bit = 1 << item;
      const count = [...set.toString(2)].filter((digit) => digit === "1").length;
      if (set & bit) reach(set, hits + 1);
      else if (capacity === 0) reach(set, hits);
      else if (count < capacity) reach(set | bit, hits);
      else
        for (let evicted = 1; evicted < 256; evicted *= 2)
          if (set & evicted) reach((set ^ evicted) | bit, hits);
    }
    states = next;
  }
  return Math.max(...states.values());
}

/** A cache as a list, searched in full at every use: evicts what has the lowest priority. */
function slowHits(
  { uses, sizes, capacity }: ReturnType<typeof run>,
  priority: (item: number, history: readonly number[]) => number,
): number[] {
  let inside: number[] = [];
  return Array.from(uses, (item, i) => {
    const hit = inside.includes(item) ? 1 : 0;
    const history = Array.from(uses.subarray(0, i + 1));
    const size = (items: readonly number[]) => items.reduce((sum, one) => sum + (sizes[one] ?? 0), 0);
    if (!hit && (sizes[item] ?? 0) <= capacity) {
      // Priorities are those of the last use.
      const rank = (one: number) =>
        priority(one, history.slice(0, history.slice(0, -1).lastIndexOf(one) + 1));
      while (size(inside) + (sizes[item] ?? 0) > capacity) {
        const worst = inside.reduce((low, one) => (rank(one) < rank(low) ? one : low));
        inside = inside.filter((one) => one !== worst);
      }
      inside.push(item);
    }
    return hit;
  });
}

const anyUses = fc.array(fc.nat(5), { minLength: 1, maxLength: 14 });

describe("cacheHits", () => {
  test("belady finds as many as any way to evict", () => {
    fc.assert(
      fc.property(anyUses, fc.nat(4), (uses, capacity) => {
        expect(hitsOf(cacheHits("belady", run(uses, capacity), options))).toBe(bestHits(uses, capacity));
      }),
      { numRuns: 300 },
    );
  });

  test("lru and ageing lfu do what their definitions say, also with sizes", () => {
    fc.assert(
      fc.property(
        fc.array(fc.nat(5), { minLength: 20, maxLength: 80 }),
        fc.integer({ min: 0, max: 7 }),
        fc.array(fc.integer({ min: 1, max: 3 }), { minLength: 8, maxLength: 8 }),
        fc.constantFrom(1, 4, 20),
        (uses, capacity, sizes, halfLife) => {
          const given = run(uses, capacity, sizes);
          const lru = slowHits(given, (_, history) => history.length);
          expect([...cacheHits("lru", given, options)]).toEqual(lru);
          const lfu = slowHits(given, (item, history) =>
            // Ages count from the same moment for all, so that of the first use does.
            history.reduce((sum, used, time) => sum + (used === item ? 2 ** (time / halfLife) : 0), 0),
          );
          expect([...cacheHits("lfu", given, { ...options, halfLife })]).toEqual(lfu);
        },
      ),
      { numRuns: 200 },
    );
  });

  test("no policy that keeps what it reads finds more than belady, and more room never hurts lru or belady", () => {
    fc.assert(
      fc.property(fc.array(fc.nat(7), { minLength: 1, maxLength: 60 }), fc.nat(6), (uses, capacity) => {
        const count = (policy: CachePolicy, room: number) =>
          hitsOf(cacheHits(policy, run(uses, room), options));
        expect(count("lru", capacity)).toBeLessThanOrEqual(count("belady", capacity));
        expect(count("lfu", capacity)).toBeLessThanOrEqual(count("belady", capacity));
        expect(count("lru", capacity)).toBeLessThanOrEqual(count("lru", capacity + 1));
        expect(count("belady", capacity)).toBeLessThanOrEqual(count("belady", capacity + 1));
      }),
      { numRuns: 200 },
    );
  });

  test("static holds the most used for their size of what it learned from, and never changes", () => {
    const learned = Float64Array.of(9, 8, 7, 0, 1, 0, 0, 0);
    const sizes = [3, 1, 1, 1, 1, 1, 1, 1];
    const uses = [0, 1, 2, 3, 4, 3, 3, 3, 0];
    expect([...cacheHits("static", run(uses, 2, sizes), { ...options, learned })]).toEqual([
      0, 1, 1, 0, 0, 0, 0, 0, 0,
    ]);
    expect([...cacheHits("static", run(uses, 5, sizes), { ...options, learned })]).toEqual([
      1, 1, 1, 0, 0, 0, 0, 0, 1,
    ]);
  });

  test("without ageing the most used stays, with ageing it goes", () => {
    // Item 0 three times at the beginning, then 1 and 2 in turn.
    const given = run([0, 0, 0, 1, 2, 1, 2, 1, 2, 1, 2], 2);
    expect(hitsOf(cacheHits("lfu", given, options))).toBeLessThan(
      hitsOf(cacheHits("lfu", given, { ...options, halfLife: 1 })),
    );
  });
});

/** Two layers of three experts, top-2; 10 bytes an expert in the first layer, 20 in the second. */
const trace: RoutingTrace = {
  model: "m",
  name: "by hand",
  otherBytes: 1_000,
  tokenBytes: 900,
  sequences: [
    { prefill: 2, decode: 2 },
    { prefill: 0, decode: 1 },
  ],
  layers: [
    {
      ...{ layer: 0, experts: 3, topK: 2, expertBytes: 10 },
      routes: Uint16Array.of(2, 0, 2, 1, 0, 1, 1, 0, 2, noExpert),
    },
    {
      ...{ layer: 3, experts: 3, topK: 2, expertBytes: 20 },
      routes: Uint16Array.of(0, 1, 0, 1, 0, 1, 2, 0, 0, 1),
    },
  ],
};

describe("simulateCache", () => {
  test("uses each expert once per prefill and layer, and once per choice in decoding", () => {
    const { policies, sequences, learned } = simulateCache(trace, {
      capacity: { experts: 2 },
      policies: ["lru"],
      bandwidth: { memory: 1_000, storage: 100 },
    });
    expect([sequences, learned]).toEqual([2, "nothing"]);
    // Layer 0: the prefill leaves 1 and 2; then 0 and 1 are missed, 1 and 0 there, 2 missed.
    // Layer 3: the prefill leaves 0 and 1; then 0 and 1 are there, 2 and 0 missed, 0 there, 1 missed.
    const [lru] = policies;
    expect(lru?.prefill).toEqual({
      tokens: 2,
      uses: 5,
      hits: 0,
      hitRatio: 0,
      missBytes: (3 * 10 + 2 * 20) / 2,
    });
    const decode = { uses: 11, missed0: 3, missed3: 3 };
    expect(lru?.decode).toEqual({
      tokens: 3,
      uses: decode.uses,
      hits: decode.uses - decode.missed0 - decode.missed3,
      hitRatio: (decode.uses - decode.missed0 - decode.missed3) / decode.uses,
      missBytes: (decode.missed0 * 10 + decode.missed3 * 20) / 3,
    });
    const computing = (900 + (5 * 10 + 6 * 20) / 3) / 1_000;
    const loading = 30 / 100;
    expect(lru?.speed?.serial).toBeCloseTo(1 / (computing + loading), 9);
    expect(lru?.speed?.overlapped).toBeCloseTo(1 / computing, 9);
  });

  test("shares one cache of bytes among all layers when asked to", () => {
    const all = simulateCache(trace, { capacity: { bytes: 90 }, scope: "global", policies: ["lru"] });
    // Everything fits: each of the 6 experts is loaded once, expert 2 of layer 3 in decoding.
    expect(all.policies[0]?.prefill.missBytes).toBe((3 * 10 + 2 * 20) / 2);
    expect(all.policies[0]?.decode.missBytes).toBeCloseTo(20 / 3, 9);
    const none = simulateCache(trace, { capacity: { bytes: 0 }, scope: "global" });
    for (const { prefill, decode } of none.policies) expect([prefill.hits, decode.hits]).toEqual([0, 0]);
    const small = simulateCache(trace, { capacity: { bytes: 15 }, scope: "global", policies: ["belady"] });
    // Experts of the second layer never fit.
    expect(small.policies[0]?.decode.missBytes).toBeGreaterThanOrEqual((6 * 20) / 3);
  });

  test("learns the static list from what it says, and tests on the rest", async () => {
    const settings = { capacity: { experts: 1 }, policies: ["static"] } as const;
    const half = simulateCache(trace, { ...settings, learn: "first-half" });
    expect([half.sequences, half.learned]).toEqual([1, "first half"]);
    // Of the first sequence: layer 0 has 0 and 1 three times each, layer 3 has 0 three times.
    expect(half.policies[0]?.decode).toMatchObject({ uses: 3, hits: 1 });
    const same = simulateCache(trace, { ...settings, learn: "tested-part" });
    expect([same.sequences, same.learned]).toEqual([2, "tested part"]);
    const other = simulateCache(trace, { ...settings, learn: { ...trace } });
    expect(other.learned).toBe("another trace");
    expect(other.policies).toEqual(same.policies);
    await expectCode(
      () => simulateCache(trace, { ...settings, learn: { ...trace, model: "other" } }),
      "COPPICE_PROFILE_MODEL",
    );
    await expectCode(() => simulateCache(trace, settings), "COPPICE_USAGE", "static");
    expect(simulateCache(trace, { capacity: { experts: 1 } }).policies.map(({ policy }) => policy)).toEqual([
      "lru",
      "lfu",
      "belady",
    ]);
  });

  test("refuses settings that make no sense", async () => {
    await expectCode(() => simulateCache(trace, { capacity: { experts: -1 } }), "COPPICE_USAGE", "capacity");
    await expectCode(
      () => simulateCache(trace, { capacity: { experts: 1 }, halfLife: 0 }),
      "COPPICE_USAGE",
      "halfLife",
    );
    const bandwidth = { memory: 0, storage: 1 };
    await expectCode(
      () => simulateCache(trace, { capacity: { experts: 1 }, bandwidth }),
      "COPPICE_USAGE",
      "memory",
    );
  });
});

describe("planMemory", () => {
  const { model } = randomModel({ experts: 6, layers: 2, topK: 2 });
  const layers = moeLayers(model);
  const rng = Rng.fromSeed(3);
  const tokens = 40;
  const header = traceHeader(model);
  const random: RoutingTrace = {
    ...header,
    name: "random",
    sequences: [{ prefill: 0, decode: tokens }],
    layers: header.layers.map((layer) => ({
      ...layer,
      topK: 2,
      routes: Uint16Array.from(
        Array.from({ length: tokens }, () => rng.shuffle([0, 1, 2, 3, 4, 5]).slice(0, 2)).flat(),
      ),
    })),
  };
  const lists: ExpertLists = layers.map(() => ({
    ranking: [4, 2, 0, 1, 3, 5],
    probability: Float32Array.of(0.125, 0.0625, 0.25, 0.03125, 0.5, 0.03125),
  }));
  const bytesOf = (keep: number) =>
    modelSize(
      model,
      createPlan(
        model,
        layers.map(({ index }) => ({ layer: index, experts: [0, 1, 2, 3, 4, 5].slice(0, keep) })),
      ),
    ).bytes;

  test("prunes where little is dropped, pages where nothing may be, and does both in between", () => {
    const budget = bytesOf(3) + 8;
    const { rows, answer } = planMemory({ model, trace: random, lists, budget, tolerance: 0.2 });
    expect(rows.map(({ keep, slots, kind, dropped }) => ({ keep, slots, kind, dropped }))).toEqual([
      { keep: 2, slots: 2, kind: "prune", dropped: 0.25 },
      { keep: 3, slots: 3, kind: "prune", dropped: 0.125 },
      { keep: 4, slots: 3, kind: "both", dropped: 0.0625 },
      { keep: 5, slots: 3, kind: "both", dropped: 0.03125 },
      { keep: 6, slots: 3, kind: "page", dropped: 0 },
    ]);
    expect(answer?.keep).toBe(3);
    for (const { cache, beladyMissBytes = 0 } of rows.slice(2)) {
      expect(beladyMissBytes).toBeGreaterThan(0);
      expect(cache?.decode.missBytes).toBeGreaterThanOrEqual(beladyMissBytes);
    }
    const strict = planMemory({ model, trace: random, lists, budget, tolerance: 0 });
    expect(strict.answer).toMatchObject({ keep: 6, kind: "page" });
    const page = simulateCache(random, { capacity: { experts: 3 }, policies: ["lru"] });
    expect(strict.answer?.cache).toEqual(page.policies[0]);
    const both = planMemory({ model, trace: random, lists, budget, tolerance: 0.1 });
    expect(both.answer?.kind).toBe("both");
    expect(both.answer?.cache?.decode.missBytes).toBeLessThan(strict.answer?.cache?.decode.missBytes ?? 0);
  });

  test("takes the whole model where it fits, and says what is too small", async () => {
    const { answer } = planMemory({ model, trace: random, lists, budget: bytesOf(6) + 8 });
    expect(answer).toEqual({ keep: 6, slots: 6, kind: "whole", dropped: 0 });
    await expectCode(
      () => planMemory({ model, trace: random, lists, budget: bytesOf(2) - 1 }),
      "COPPICE_PLAN_KEEP",
      "a token needs 2",
    );
    await expectCode(
      () => planMemory({ model, trace: { ...random, planned: true }, lists, budget: 1e9 }),
      "COPPICE_USAGE",
      "recorded under a plan",
    );
    await expectCode(
      () => planMemory({ model, trace: { ...random, model: "other" }, lists, budget: 1e9 }),
      "COPPICE_PROFILE_MODEL",
    );
  });

  test("bends choices of dropped experts to the first of the list that the token has not chosen", () => {
    const routes = Uint16Array.of(5, 4, 3, 5, 0, noExpert, 4, 2);
    const bent = bendTrace(
      { ...random, layers: [{ ...header.layers[0], topK: 2, routes } as RoutingTrace["layers"][number]] },
      [[0, 2, 4]],
      lists,
    );
    expect([...(bent.layers[0]?.routes ?? [])]).toEqual([2, 4, 4, 2, 0, noExpert, 4, 2]);
  });
});
