import { mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { isCoppiceError, type MoeModel, moeLayers, packFloats, Rng, type Statistics } from "@coppice/core";
import { randomModel } from "@coppice/plugin-kit";
import {
  addProfile,
  createStore,
  decodeProfiles,
  encodeProfiles,
  findProfile,
  mergeStores,
  type ProfileStore,
  removeProfile,
} from "@coppice/profiles";
import { readProfiles, writeProfiles } from "@coppice/profiles/node";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { expectCode } from "./models.js";
import { emptyStatistics } from "./statistics.js";

const { model } = randomModel({ experts: 5, layers: 3, denseLayers: [1] });

function profiled(store: ProfileStore, name: string, seed: number, general = false): ProfileStore {
  const rng = Rng.fromSeed(seed);
  const statistics = randomStatistics(model, rng);
  const scores = statistics.layers.map(({ count }) => count.map(() => rng.uniform()));
  return addProfile(store, { name, model, statistics, scores, criterion: "test", general });
}

function randomStatistics(of: MoeModel, rng: Rng): Statistics {
  const statistics = emptyStatistics(of, 10);
  for (const { probability, logitGram, topLogit } of statistics.layers) {
    const mass = probability.map(() => rng.uniform());
    const total = mass.reduce((sum, value) => sum + value, 0);
    probability.set(mass.map((value) => (10 * value) / total));
    topLogit.set(topLogit.map(() => rng.normal()));
    const experts = probability.length;
    for (let i = 0; i < experts; i++) {
      for (let j = 0; j <= i; j++) {
        logitGram[i * experts + j] = rng.normal();
        logitGram[j * experts + i] = logitGram[i * experts + j] as number;
      }
    }
  }
  return statistics;
}

const store = ["geo", "arith", "sort"].reduce(
  (all, name, i) => profiled(all, name, i + 1),
  createStore(model),
);

describe("a store", () => {
  test("ranks the experts by their scores, ties by index, and keeps mean probabilities", () => {
    const statistics = randomStatistics(model, Rng.fromSeed(1));
    const scores = statistics.layers.map(() => [1, 5, 1, 7, 2]);
    const [profile] = addProfile(createStore(model), {
      name: "one",
      model,
      statistics,
      scores,
      criterion: "test",
    }).profiles;
    expect(profile?.layers.map(({ ranking }) => ranking)).toEqual([
      [3, 1, 4, 0, 2],
      [3, 1, 4, 0, 2],
    ]);
    expect(profile?.layers[1]?.probability.reduce((sum, value) => sum + value, 0)).toBeCloseTo(1, 6);
    expect(profile?.layers[0]?.probability[2]).toBeCloseTo(
      (statistics.layers[0]?.probability[2] ?? 0) / 10,
      6,
    );
  });

  test("is the same in whatever order profiles come", () => {
    const other = ["sort", "geo", "arith"].reduce(
      (all, name) => profiled(all, name, 1 + ["geo", "arith", "sort"].indexOf(name)),
      createStore(model),
    );
    expect(encodeProfiles(other)).toBe(encodeProfiles(store));
    const parts = mergeStores(profiled(createStore(model), "sort", 3), removeProfile(store, "sort"));
    expect(encodeProfiles(parts)).toBe(encodeProfiles(store));
  });

  test("refuses a name twice, two general profiles, other models and other statistics", async () => {
    await expectCode(() => profiled(store, "geo", 9), "COPPICE_USAGE", '"geo"');
    await expectCode(
      () => mergeStores(store, profiled(createStore(model), "geo", 1)),
      "COPPICE_USAGE",
      '"geo"',
    );
    const general = profiled(store, "all", 8, true);
    await expectCode(() => profiled(general, "every", 8, true), "COPPICE_USAGE", "general");
    const other = randomModel({ experts: 5, seed: 2 }).model;
    await expectCode(() => mergeStores(store, createStore(other)), "COPPICE_PROFILE_MODEL");
    await expectCode(
      () => mergeStores(store, createStore(model, "probability")),
      "COPPICE_USAGE",
      "logit-gram",
    );
    await expectCode(() => removeProfile(store, "nothing"), "COPPICE_USAGE", "arith, geo, sort");
    const statistics = randomStatistics(model, Rng.fromSeed(1));
    const bad = { name: "bad", model, statistics, criterion: "test" };
    await expectCode(() => addProfile(store, { ...bad, scores: [[1, 2]] }), "COPPICE_USAGE", "5 experts");
    const scores = [
      [1, 2, 3, 4, 5],
      [1, 2, Number.NaN, 4, 5],
    ];
    await expectCode(() => addProfile(store, { ...bad, scores }), "COPPICE_USAGE", "finite");
    const foreign = { ...statistics, model: "other" };
    await expectCode(() => addProfile(store, { ...bad, statistics: foreign, scores }), "COPPICE_STATS_MODEL");
  });
});

describe("a file of profiles", () => {
  test("brings every bit back", () => {
    const back = decodeProfiles(encodeProfiles(store), "p.json");
    expect(back).toEqual(store);
    expect(findProfile(back, "geo").vector.length).toBe(15);
  });

  type Json = Record<string, unknown> & { profiles: Record<string, unknown>[] };
  const bad: Readonly<Record<string, (json: Json) => unknown>> = {
    "another format": (json) => ({ ...json, format: "coppice.plan" }),
    "another version": (json) => ({ ...json, version: 2 }),
    "a key too many": (json) => ({ ...json, more: 1 }),
    "an unknown statistic": (json) => ({ ...json, statistic: "mean" }),
    "no layers": (json) => ({ ...json, layers: [] }),
    "layers out of order": (json) => ({ ...json, layers: [...(json.layers as unknown[])].reverse() }),
    "too many experts": (json) => ({ ...json, layers: [{ layer: 0, experts: 1e9 }] }),
    "profiles out of order": (json) => ({ ...json, profiles: [...json.profiles].reverse() }),
    "a name twice": (json) => ({ ...json, profiles: [json.profiles[0], json.profiles[0]] }),
    "a long name": (json) => ({ ...json, profiles: [{ ...json.profiles[0], name: "x".repeat(201) }] }),
    "two general profiles": (json) => ({
      ...json,
      profiles: json.profiles.map((profile) => ({ ...profile, general: true })),
    }),
    "a short vector": (json) => ({
      ...json,
      profiles: [{ ...json.profiles[0], vector: packFloats(new Float32Array(14)) }],
    }),
    "a vector with NaN": (json) => ({
      ...json,
      profiles: [{ ...json.profiles[0], vector: packFloats(new Float32Array(15).fill(Number.NaN)) }],
    }),
    "a layer too few": (json) => ({ ...json, profiles: [{ ...json.profiles[0], layers: [] }] }),
    "an expert twice": (json) => withLayer(json, { ranking: [0, 1, 2, 3, 3] }),
    "an expert that is not there": (json) => withLayer(json, { ranking: [0, 1, 2, 3, 5] }),
    "a negative probability": (json) =>
      withLayer(json, { probability: packFloats(Float32Array.of(-1, 1, 1, 0, 0)) }),
    "tokens that are no number": (json) => ({ ...json, profiles: [{ ...json.profiles[0], tokens: "many" }] }),
  };

  function withLayer(json: Json, change: Record<string, unknown>): unknown {
    const [profile] = json.profiles as [{ layers: Record<string, unknown>[] }];
    const [first, second] = profile.layers;
    return { ...json, profiles: [{ ...profile, layers: [{ ...first, ...change }, second] }] };
  }

  test.each(Object.keys(bad))("with %s is refused", async (name) => {
    const json = JSON.parse(encodeProfiles(store)) as Json;
    const text = JSON.stringify(bad[name]?.(json));
    await expectCode(() => decodeProfiles(text, "p.json"), "COPPICE_PROFILE_FORMAT", "p.json");
  });

  test("that is damaged anywhere is read or refused, and nothing else", () => {
    const text = encodeProfiles(store);
    fc.assert(
      fc.property(fc.nat(text.length), fc.string({ maxLength: 6 }), fc.nat(6), (at, put, cut) => {
        const damaged = text.slice(0, at) + put + text.slice(at + cut);
        try {
          decodeProfiles(damaged, "p.json");
        } catch (error) {
          if (!isCoppiceError(error, "COPPICE_PROFILE_FORMAT")) throw error;
        }
      }),
      { numRuns: 300 },
    );
  });

  test("is written whole or not at all, and not over another", async () => {
    const folder = await mkdtemp(join(tmpdir(), "profiles-"));
    try {
      const path = join(folder, "p.json");
      await writeProfiles(path, store);
      expect(await readProfiles(path)).toEqual(store);
      await expectCode(() => writeProfiles(path, store), "COPPICE_IO_EXISTS");
      await writeProfiles(path, removeProfile(store, "geo"), { overwrite: true });
      expect((await readProfiles(path)).profiles.length).toBe(2);
      expect(await readdir(folder)).toEqual(["p.json"]);
      await writeFile(path, "{");
      await expectCode(() => readProfiles(path), "COPPICE_PROFILE_FORMAT");
      await expectCode(() => readProfiles(join(folder, "none.json")), "COPPICE_IO_READ");
      await expectCode(() => writeProfiles(join(folder, "no", "p.json"), store), "COPPICE_IO_WRITE");
      const signal = AbortSignal.abort();
      await expectCode(() => readProfiles(path, { signal }), "COPPICE_ABORTED");
    } finally {
      await rm(folder, { recursive: true });
    }
  });
});

test("models without MoE layers cannot be profiled", async () => {
  const dense = randomModel({ layers: 1, denseLayers: [0] }).model;
  expect(moeLayers(dense)).toEqual([]);
  const statistics = { model: dense.fingerprint, tokens: 1, layers: [] };
  await expectCode(
    () =>
      addProfile(createStore(dense), { name: "x", model: dense, statistics, scores: [], criterion: "test" }),
    "COPPICE_FAMILY_UNSUPPORTED",
  );
});
