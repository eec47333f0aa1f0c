import {
  type CollectedPart,
  type CollectedStatistics,
  collectParts,
  collectStatistics,
  mergeStatistics,
  PartSum,
  scaleStatistics,
} from "@coppice/calibrate";
import { extraFields, statisticsFields } from "@coppice/core";
import { randomModel } from "@coppice/plugin-kit";
import { describe, expect, test } from "vitest";
import { expectNear, load, randomSequences } from "./models.js";

describe("collectParts", () => {
  test("gives the same bits whoever collects which part, and whenever it comes", async () => {
    const source = randomModel({ seed: 5 });
    await using runner = await load(source);
    const sequences = randomSequences(source.model.vocabSize, [5, 7, 3, 8, 2, 9, 1]);
    const options = { runner, sequences, name: "test", parts: 4, sample: { limit: 6 } };
    const whole = await collectStatistics(options);
    const found: CollectedPart[] = [];
    for (const index of [2, 0, 1]) {
      for await (const part of collectParts(options, { index, count: 3 })) found.push(part);
    }
    expect(found.map(({ part }) => part)).toEqual([2, 0, 3, 1]);
    const sum = new PartSum();
    expect(() => sum.result()).toThrow(expect.objectContaining({ code: "COPPICE_INTERNAL" }));
    // Twice: a worker that ended begins anew.
    for (const part of [...found, ...found]) sum.add(part);
    expect(sum.result()).toEqual(whole);
    // More parts than sequences are cut into as many as have any.
    const many = await collectStatistics({ ...options, parts: 50 });
    expect(many.layers[0]?.count).toEqual(whole.layers[0]?.count);
  });
});

describe("mergeStatistics", () => {
  test("refuses other models and the same data twice", async () => {
    const source = randomModel({ seed: 5 });
    const sequences = randomSequences(source.model.vocabSize, [5]);
    await using runner = await load(source);
    const statistics = await collectStatistics({ runner, sequences, name: "data.txt" });
    expect(() => mergeStatistics(statistics, { ...statistics, model: "other", sources: [] })).toThrow(
      expect.objectContaining({ code: "COPPICE_STATS_MODEL" }),
    );
    const fewer = { ...statistics, layers: statistics.layers.slice(1), sources: [] };
    expect(() => mergeStatistics(statistics, fewer)).toThrow(
      expect.objectContaining({ code: "COPPICE_STATS_MODEL" }),
    );
    expect(() => mergeStatistics(statistics, statistics)).toThrow(
      expect.objectContaining({ code: "COPPICE_USAGE", message: expect.stringContaining("data.txt") }),
    );
  });

  test("gives the same in any order, sources by name", async () => {
    const source = randomModel({ seed: 5 });
    const data = randomSequences(source.model.vocabSize, [5, 9, 2, 7]);
    await using runner = await load(source);
    const parts: CollectedStatistics[] = [];
    for (const [i, sequence] of data.entries()) {
      const options = { runner, sequences: [sequence], name: `part ${i}`, extras: extraFields };
      parts.push(await collectStatistics(options));
    }
    const [a, b, c, d] = parts as [
      CollectedStatistics,
      CollectedStatistics,
      CollectedStatistics,
      CollectedStatistics,
    ];
    const one = mergeStatistics(mergeStatistics(mergeStatistics(a, b), c), d);
    const other = mergeStatistics(mergeStatistics(d, b), mergeStatistics(c, a));
    expect(other.sources).toEqual(one.sources);
    expect(other.tokens).toBe(23);
    one.layers.forEach((layer, i) => {
      const merged = other.layers[i] as typeof layer;
      expect(merged.count).toEqual(layer.count);
      expect(merged.peak).toEqual(layer.peak);
      for (const field of [...statisticsFields, ...extraFields]) {
        expectNear(field, merged[field] ?? [], layer[field] ?? [], 1e-12);
      }
    });
  });
});

describe("scaleStatistics", () => {
  const source = randomModel({ seed: 5 });

  test("makes every token count as often as the weight says", async () => {
    await using runner = await load(source);
    const [first, second] = randomSequences(source.model.vocabSize, [6, 4]) as [Int32Array, Int32Array];
    const once = await collectStatistics({ runner, sequences: [first], name: "first" });
    const more = await collectStatistics({ runner, sequences: [second], name: "second" });
    const thrice = await collectStatistics({
      runner,
      sequences: [first, second, second, second],
      name: "all",
    });
    const mixed = mergeStatistics(once, scaleStatistics(more, 3));
    expect(mixed.tokens).toBe(18);
    expect(mixed.sources.map(({ weight }) => weight)).toEqual([1, 3]);
    mixed.layers.forEach((layer, i) => {
      const expected = thrice.layers[i] as typeof layer;
      expect(layer.tokens).toBe(18);
      for (const field of statisticsFields) expectNear(field, layer[field], expected[field], 1e-6);
    });
    expect(scaleStatistics(scaleStatistics(more, 0.25), 4)).toEqual(more);
  });

  test("refuses weights that are no proportion", async () => {
    await using runner = await load(source);
    const statistics = await collectStatistics({ runner, sequences: [Int32Array.of(1)], name: "test" });
    for (const weight of [0, -1, Number.NaN, Number.POSITIVE_INFINITY]) {
      expect(() => scaleStatistics(statistics, weight)).toThrow(
        expect.objectContaining({ code: "COPPICE_USAGE", message: expect.stringContaining(String(weight)) }),
      );
    }
  });
});
