import {
  type CollectedStatistics,
  collectStatistics,
  decodeStatistics,
  encodeStatistics,
  mergeStatistics,
  scaleStatistics,
} from "@coppice/calibrate";
import { type LayerSample, type LayerStatistics, type SampleField, sampleFieldsOf } from "@coppice/core";
import { type MemoryModel, randomModel, sampleShapes, slowForward } from "@coppice/plugin-kit";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { tokenPriorities } from "../src/token-priority.js";
import { selectSample } from "../src/token-sample.js";
import { load, models, randomSequences, relativeError } from "./models.js";

const all: readonly SampleField[] = ["logits", "inputs", "grams", "units"];

describe("priorities of tokens", () => {
  test("belong to the sequence and the position", () => {
    const once = tokenPriorities(Int32Array.of(5, 6, 7));
    expect(tokenPriorities(Int32Array.of(5, 6, 7))).toEqual(once);
    expect(tokenPriorities(Int32Array.of(5, 6, 8))[0]).not.toBe(once[0]);
    expect(new Set(tokenPriorities(new Int32Array(1000))).size).toBe(1000);
  });

  test("are those of numbers that are evenly spread, whatever their neighbours are", () => {
    const uniform = Array.from({ length: 400 }, (_, i) =>
      Array.from(tokenPriorities(Int32Array.from({ length: 50 }, (_, t) => i + t)), (value) =>
        Math.exp(-value),
      ),
    ).flat();
    const cells = new Array<number>(64).fill(0);
    for (let i = 0; i + 1 < uniform.length; i += 2) {
      const [row, column] = [uniform[i], uniform[i + 1]].map((u) => Math.floor((u as number) * 8));
      const cell = (row as number) * 8 + (column as number);
      cells[cell] = (cells[cell] as number) + 1;
    }
    const expected = uniform.length / 2 / 64;
    const chi2 = cells.reduce((sum, count) => sum + (count - expected) ** 2 / expected, 0);
    // 63 degrees of freedom: 99.9 % lie below 103.
    expect(chi2).toBeLessThan(103);
    expect(Math.min(...uniform)).toBeGreaterThan(0);
    expect(Math.max(...uniform)).toBeLessThan(1);
  });
});

describe("selectSample", () => {
  test("takes the lowest priorities of all tokens", () => {
    fc.assert(
      fc.property(
        fc.array(fc.array(fc.nat(9), { minLength: 1, maxLength: 6 }), { minLength: 1, maxLength: 8 }),
        fc.integer({ min: 1, max: 30 }),
        (data, limit) => {
          const sequences = data.map((ids) => Int32Array.from(ids));
          const expected = sequences
            .flatMap((ids, sequence) =>
              Array.from(tokenPriorities(ids), (priority, position) => ({ sequence, position, priority })),
            )
            .sort((a, b) => a.priority - b.priority || a.sequence - b.sequence || a.position - b.position)
            .slice(0, limit);
          expect(selectSample(sequences, limit)).toEqual(expected);
        },
      ),
    );
  });
});

describe.each(Object.keys(models))("a sample of %s", (name) => {
  test("shows what the tokens did", async () => {
    const source = await (models[name] as () => Promise<MemoryModel>)();
    const sequences = randomSequences(source.model.vocabSize, [9, 2, 14, 1, 6]);
    await using runner = await load(source);
    const sample = { limit: 7, with: all };
    const found = await collectStatistics({ runner, sequences, name: "test", tokenBudget: 12, sample });
    const bare = await collectStatistics({ runner, sequences, name: "test", tokenBudget: 12 });
    expect(sampleFieldsOf(found)).toEqual(all);
    expect(sampleFieldsOf(bare)).toEqual([]);
    const tokens = selectSample(sequences, 7);
    expect([...(found.sample?.priorities ?? [])]).toEqual(tokens.map(({ priority }) => priority));
    const results = sequences.map((ids) => slowForward(source, [...ids]));
    found.layers.forEach(({ sample: shown, ...sums }, i) => {
      expect(sums).toEqual(bare.layers[i]);
      const rows = tokens.map(({ sequence, position }) => {
        const { layers } = results[sequence] as (typeof results)[number];
        const layer = layers[i] as (typeof layers)[number];
        const experts = layer.every(position);
        return {
          logits: layer.routerLogits[position] as readonly number[],
          inputs: layer.input[position] as readonly number[],
          grams: experts.flatMap((a) =>
            experts.map((b) => a.output.reduce((sum, value, h) => sum + value * (b.output[h] as number), 0)),
          ),
          units: experts.flatMap(({ units }) => [...units]),
        };
      });
      for (const field of all) {
        const expected = rows.flatMap((row) => [...row[field]]);
        expect(relativeError(shown?.[field] ?? [], expected, { signed: true }), field).toBeLessThan(1e-5);
      }
    });
  });
});

describe("samples of disjoint data", () => {
  const source = randomModel({ seed: 5 });
  const sequences = randomSequences(source.model.vocabSize, [5, 7, 3, 8, 1, 12]);
  // One sequence a run, so that what a token sees is the same bits in any company.
  const collect = async (data: Int32Array[], limit: number, name: string) => {
    await using runner = await load(source);
    const sample = { limit, with: all };
    return await collectStatistics({ runner, sequences: data, name, tokenBudget: 1, sample });
  };
  const samplesOf = ({ sample, layers }: CollectedStatistics) => [
    sample,
    ...layers.map((layer) => layer.sample),
  ];

  test.each([3, 10, 100])("give that of their union, in any order (%i tokens)", async (limit) => {
    const whole = await collect(sequences, limit, "whole");
    const parts = await Promise.all(sequences.map((sequence, i) => collect([sequence], limit, `part ${i}`)));
    const merge = (order: readonly number[]) =>
      order.map((i) => parts[i] as CollectedStatistics).reduce(mergeStatistics);
    expect(samplesOf(merge([0, 1, 2, 3, 4, 5]))).toEqual(samplesOf(whole));
    expect(samplesOf(merge([5, 1, 3, 0, 4, 2]))).toEqual(samplesOf(whole));
    const pairs = mergeStatistics(merge([4, 2]), mergeStatistics(merge([1, 5]), merge([3, 0])));
    expect(samplesOf(pairs)).toEqual(samplesOf(whole));
    const read = await decodeStatistics(encodeStatistics(whole), "s");
    expect(read).toEqual(whole);
    expect(read.sample?.priorities).toHaveLength(Math.min(limit, 36));
  });

  test("give that of the mixture, weights included", async () => {
    const [a, b] = [await collect(sequences.slice(0, 3), 8, "a"), await collect(sequences.slice(3), 8, "b")];
    const mixed = mergeStatistics(scaleStatistics(a, 0.25), scaleStatistics(b, 3));
    const weighted = sequences
      .flatMap((ids, s) => Array.from(tokenPriorities(ids), (value) => value / (s < 3 ? 0.25 : 3)))
      .sort((x, y) => x - y);
    expect([...(mixed.sample?.priorities ?? [])]).toEqual(weighted.slice(0, 8));
    expect(await decodeStatistics(encodeStatistics(mixed), "s")).toEqual(mixed);
  });

  test("are as small as the smaller of the two", async () => {
    const whole = await collect(sequences, 4, "whole");
    const merged = mergeStatistics(
      await collect(sequences.slice(0, 2), 4, "a"),
      await collect(sequences.slice(2), 9, "b"),
    );
    expect(samplesOf(merged)).toEqual(samplesOf(whole));
  });

  test("do not add up when they show different things", async () => {
    await using runner = await load(source);
    const one = await collect(sequences.slice(0, 2), 4, "a");
    const data = { runner, sequences: sequences.slice(2), name: "b" };
    for (const options of [
      {},
      { sample: { limit: 4 } },
      { sample: { limit: 4, with: ["inputs"] as const } },
    ]) {
      const other = await collectStatistics({ ...data, ...options });
      expect(() => mergeStatistics(one, other)).toThrow(
        expect.objectContaining({
          code: "COPPICE_USAGE",
          message: expect.stringContaining("a sample of logits, inputs, grams, units"),
          hint: expect.stringContaining("collect the same"),
        }),
      );
    }
  });

  test("do not grow beyond what statistics may be, and ask for sizes that are some", async () => {
    await using runner = await load(source);
    const collectOf = (limit: number) =>
      collectStatistics({ runner, sequences, name: "test", sample: { limit, with: all } });
    for (const limit of [0, 1.5, -1, Number.NaN, 2_000_000]) {
      await expect(collectOf(limit)).rejects.toMatchObject({ code: "COPPICE_USAGE" });
    }
    const wide = randomModel(sampleShapes["many-experts"]);
    await using other = await load(wide);
    const many = Array.from({ length: 2_000 }, () => new Int32Array(256).fill(1));
    const options = {
      runner: other,
      sequences: many,
      name: "test",
      sample: { limit: 1_000_000, with: all },
    };
    await expect(collectStatistics(options)).rejects.toMatchObject({
      code: "COPPICE_USAGE",
      message: expect.stringContaining("expected at most 1,074 MB"),
    });
  });

  test("are of equal content for equal tokens", async () => {
    const [sequence] = sequences as [Int32Array];
    const twice = await collect([sequence, sequence.slice()], 4, "twice");
    const { priorities } = twice.sample ?? {};
    expect(priorities?.[0]).toBe(priorities?.[1]);
    const [layer] = twice.layers as [LayerStatistics];
    const { logits } = layer.sample as LayerSample;
    const experts = layer.count.length;
    expect(logits.slice(0, experts)).toEqual(logits.slice(experts, 2 * experts));
  });
});
