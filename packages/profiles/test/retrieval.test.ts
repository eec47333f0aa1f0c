import { collectStatistics } from "@coppice/calibrate";
import { moeLayers, type Statistics } from "@coppice/core";
import { slowForward } from "@coppice/plugin-kit";
import { addProfile, createStore, openPromptReader, pickProfile, statisticVector } from "@coppice/profiles";
import { describe, expect, test } from "vitest";
import { statisticLength } from "../src/task-statistic.js";
import { backend, expectCode, models, relativeError, sequences } from "./models.js";

describe.each(Object.keys(models))("prompts of a model with %s", (name) => {
  test("have in the first MoE layer the sums of their definitions, although few experts are loaded", async () => {
    const source = await (models[name] as (typeof models)[string])();
    const { model, weights } = source;
    const read = new Set<string>();
    const watched: typeof weights = {
      read(ref, options) {
        read.add(ref.name);
        return weights.read(ref, options);
      },
    };
    await using reader = await openPromptReader(await backend(), { model, weights: watched });
    const prompts = sequences(model.vocabSize, [5, 3]);
    const sums = await reader.sums(prompts);

    const [first] = moeLayers(model);
    const experts = first?.feedForward.experts.length as number;
    const rows = prompts.flatMap((ids) => slowForward(source, [...ids]).layers[0]?.routerLogits ?? []);
    const softmax = rows.map((row) => {
      const mass = row.reduce((sum, z) => sum + Math.exp(z), 0);
      return row.map((z) => Math.exp(z) / mass);
    });
    const sum = (values: readonly number[]) => values.reduce((all, value) => all + value, 0);
    const each = Array.from({ length: experts }, (_, expert) => expert);
    expect(sums.tokens).toBe(8);
    expect(
      relativeError(
        sums.probability,
        each.map((j) => sum(softmax.map((p) => p[j] ?? 0))),
      ),
    ).toBeLessThan(1e-5);
    expect(
      relativeError(
        sums.topLogit,
        each.map((j) => sum(rows.filter((z) => z[j] === Math.max(...z)).map((z) => z[j] ?? 0))),
      ),
    ).toBeLessThan(1e-5);
    const gram = each.flatMap((i) => each.map((j) => sum(rows.map((z) => (z[i] ?? 0) * (z[j] ?? 0)))));
    expect(relativeError(sums.logitGram, gram)).toBeLessThan(1e-5);

    const weightsOf = (layers: readonly (typeof first)[]) =>
      layers.flatMap((layer) => layer?.feedForward.experts.map(({ up }) => up.name) ?? []);
    const names = new Set(weightsOf([first]).filter((one) => read.has(one)));
    const topK = first?.feedForward.router.topK as number;
    expect(names.size).toBeGreaterThanOrEqual(Math.min(topK, new Set(weightsOf([first])).size));
    // Experts in one stack share a name.
    if (new Set(weightsOf([first])).size === experts) expect(names.size).toBeLessThan(experts);
    const later = weightsOf(moeLayers(model).slice(1)).filter((one) => !weightsOf([first]).includes(one));
    expect(later.filter((one) => read.has(one))).toEqual([]);
  });
});

describe("statisticVector", () => {
  const sums = {
    tokens: 4,
    probability: Float64Array.of(3, 1, 0),
    topLogit: Float64Array.of(6, -8, 0),
    logitGram: Float64Array.of(4, 1, 2, 1, 3, 0, 2, 0, 5),
  };

  test("has length 1 and the values of its definition", () => {
    const root = (value: number) => Math.sqrt(value / 4);
    expect(relativeError(statisticVector("probability", sums), [root(3), root(1), 0])).toBeLessThan(1e-6);
    expect(relativeError(statisticVector("top-logit", sums), [0.6, -0.8, 0])).toBeLessThan(1e-6);
    const norm = Math.sqrt(16 + 2 + 8 + 9 + 25);
    const upper = [4, Math.SQRT2, 2 * Math.SQRT2, 3, 0, 5].map((value) => value / norm);
    expect(relativeError(statisticVector("logit-gram", sums), upper)).toBeLessThan(1e-6);
    expect(upper.length).toBe(statisticLength("logit-gram", 3));
  });

  test("is zero for logits that are", () => {
    const zero = { ...sums, topLogit: new Float64Array(3) };
    expect([...statisticVector("top-logit", zero)]).toEqual([0, 0, 0]);
  });
});

describe("pickProfile", () => {
  const layer = (top: readonly number[]) => ({
    tokens: 1,
    probability: Float64Array.of(0.5, 0.25, 0.25),
    topLogit: Float64Array.from(top),
    logitGram: new Float64Array(9),
  });

  async function store() {
    const { model, weights } = await (models["softmax-topk"] as (typeof models)[string])();
    await using runner = await (await backend()).load({ model, weights });
    const statistics: Statistics = await collectStatistics({
      runner,
      sequences: sequences(model.vocabSize, [6]),
      name: "random",
    });
    const scores = statistics.layers.map(({ count }) => count);
    const add = (to: ReturnType<typeof createStore>, name: string, top: readonly number[], general = false) =>
      addProfile(to, {
        name,
        model,
        statistics,
        scores,
        criterion: "frequency",
        prompts: layer(top),
        general,
      });
    let all = createStore(model, "top-logit");
    all = add(all, "first", [1, 0, 0]);
    all = add(all, "second", [0, 1, 0]);
    return { all, add };
  }

  test("takes the nearest, and says by what margin", async () => {
    const { all } = await store();
    const pick = pickProfile(all, layer([3, 0, 0]));
    expect(pick).toMatchObject({ kind: "nearest", margin: 1 });
    expect(pick.profiles.map(({ name }) => name)).toEqual(["first"]);
    expect(pick.nearest.map(({ profile, distance }) => [profile.name, distance])).toEqual([
      ["first", 0],
      ["second", Math.SQRT2],
    ]);
  });

  test("takes several, or the general profile, where two are about as near", async () => {
    const { all, add } = await store();
    const between = layer([1, 0.99, 0]);
    const union = pickProfile(all, between);
    expect(union.kind).toBe("union");
    expect(union.profiles.map(({ name }) => name)).toEqual(["first", "second"]);
    await expectCode(() => pickProfile(all, between, { otherwise: "general" }), "COPPICE_USAGE", "general");
    const general = pickProfile(add(all, "all", [1, 1, 0], true), between, { otherwise: "general" });
    expect(general.profiles.map(({ name }) => name)).toEqual(["all"]);
    expect(general.nearest.map(({ profile }) => profile.name)).toEqual(["first", "second"]);
    expect(pickProfile(all, between, { margin: 0 }).kind).toBe("nearest");
  });

  test("needs a profile to pick", async () => {
    const { all } = await store();
    await expectCode(() => pickProfile({ ...all, profiles: [] }, layer([1, 0, 0])), "COPPICE_USAGE");
  });
});
