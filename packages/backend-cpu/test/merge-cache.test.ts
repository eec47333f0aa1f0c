import { type LayerPlan, moeLayers, packBfloat16, roundToDtype, type UnitSource } from "@coppice/core";
import { randomModel } from "@coppice/plugin-kit";
import { describe, expect, test } from "vitest";
import { MergeCache } from "../src/merge-cache.js";
import { loadRuntime } from "../src/sessions.js";
import { readWeights } from "../src/weights.js";

async function setUp(slots: number) {
  const { model, weights } = randomModel({
    layers: 1,
    experts: 3,
    topK: 1,
    dtype: "BF16",
    mlpBias: true,
    width: 24,
  });
  const runtime = await loadRuntime();
  const specs = moeLayers(model)[0]?.feedForward.experts ?? [];
  const range = { from: 0, to: 1 };
  const read = await readWeights(runtime, model, weights, range, undefined);
  const experts = read.layers.get(0)?.mlps ?? [];
  const bytes = 4 * Object.values(experts[0] ?? {}).reduce((sum, tensor) => sum + tensor.size, 0);
  const cache = new MergeCache(runtime, slots * bytes);
  const merge = (row: readonly number[], units?: readonly UnitSource[], layer = 0) =>
    cache.merged(layer, { row, units }, specs, experts);
  const change = (plan: LayerPlan, slot: number, row: readonly number[], units?: readonly UnitSource[]) =>
    cache.merged(plan.layer, { row, units, change: { plan, slot } }, specs, experts);
  return { bytes, cache, change, experts, merge };
}

test("merged weights and biases are the sum, rounded as they would be stored", async () => {
  const { experts, merge } = await setUp(1);
  const row = [0.75, 0, -0.5];
  for (const part of ["gate", "up", "down", "gateBias", "upBias", "downBias"] as const) {
    const [first, , third] = experts.map((expert) => expert[part]?.data as Float32Array);
    const expected = (first ?? new Float32Array()).map((value, i) => 0.75 * value - 0.5 * (third?.[i] ?? 0));
    roundToDtype(expected, "BF16");
    expect(merge(row)[part]?.data).toEqual(expected);
  }
});

test("an expert that is only itself is not copied", async () => {
  const { cache, experts, merge } = await setUp(1);
  expect(merge([0, 1, 0])).toBe(experts[1]);
  expect(merge([0, 0.5, 0])).not.toBe(experts[1]);
  expect(Array.from(merge([0, 0, 0]).up.data as Float32Array).every((value) => value === 0)).toBe(true);
  expect(cache.bytes).toBeGreaterThan(0);
});

test("the least recently used goes first, and the bytes stay within the limit", async () => {
  const { bytes, cache, merge } = await setUp(2);
  const [a, b, c] = [
    [1, 1, 0],
    [0, 1, 1],
    [1, 0, 1],
  ] as const;
  const [first, second] = [merge(a), merge(b)];
  expect(merge(a)).toBe(first);
  merge(c);
  expect(cache.bytes).toBe(2 * bytes);
  expect(merge(a)).toBe(first);
  expect(merge(b)).not.toBe(second);
  expect(cache.bytes).toBe(2 * bytes);
});

test("a limit below one expert keeps nothing", async () => {
  const { cache, merge } = await setUp(0.5);
  expect(merge([1, 1, 0])).not.toBe(merge([1, 1, 0]));
  expect(cache.bytes).toBe(0);
});

describe("units", () => {
  const width = 24;
  const backwards = Array.from({ length: width }, (_, i) => width - 1 - i);
  const same = Array.from({ length: width }, (_, i) => i);
  const units: UnitSource[] = [
    { expert: 0, to: same, rows: 0.75, columns: same.map((i) => (i === 3 ? 0.5 : 1)) },
    { expert: 2, to: backwards.map((unit) => (unit === 5 ? -1 : unit)), rows: 0.25, columns: 0.5 },
  ];

  test("each is the sum of those that are added to it; the down bias is that of the row", async () => {
    const { experts, merge } = await setUp(1);
    const slot = merge([0, 1, 0], units);
    const value = (expert: number, part: "gate" | "up" | "down" | "gateBias", at: number) =>
      experts[expert]?.[part]?.data[at] as number;
    const rounded = (values: readonly number[]) => {
      const result = Float32Array.from(values);
      roundToDtype(result, "BF16");
      return result;
    };
    const giver = (unit: number) => width - 1 - unit;
    const hidden = slot.up.dims[1] as number;
    const rows = (part: "gate" | "up" | "gateBias", size: number) =>
      same.flatMap((unit) =>
        Array.from({ length: size }, (_, i) => {
          const second = unit === 5 ? 0 : 0.25 * value(2, part, giver(unit) * size + i);
          return 0.75 * value(0, part, unit * size + i) + second;
        }),
      );
    expect(slot.gate?.data).toEqual(rounded(rows("gate", hidden)));
    expect(slot.up.data).toEqual(rounded(rows("up", hidden)));
    expect(slot.gateBias?.data).toEqual(rounded(rows("gateBias", 1)));
    const columns = Array.from({ length: hidden }, (_, row) =>
      same.map((unit) => {
        const second = unit === 5 ? 0 : 0.5 * value(2, "down", row * width + giver(unit));
        return (unit === 3 ? 0.5 : 1) * value(0, "down", row * width + unit) + second;
      }),
    );
    expect(slot.down.data).toEqual(rounded(columns.flat()));
    expect(slot.downBias?.data).toEqual(experts[1]?.downBias?.data);
  });

  test("are part of what is looked up, whoever wrote them down", async () => {
    const { merge } = await setUp(8);
    const row = [1, 0, 0];
    const first = merge(row, units);
    expect(merge(row, structuredClone(units))).toBe(first);
    expect(merge([1, 0.5, 0], units)).not.toBe(first);
    expect(merge(row, units, 1)).not.toBe(first);
    expect(merge(row)).not.toBe(first);
    const changes: Partial<UnitSource>[] = [{ expert: 1 }, { to: same }, { rows: 0.5 }, { columns: 0.25 }];
    for (const change of changes) {
      const [kept, changed] = units as [UnitSource, UnitSource];
      expect(merge(row, [kept, { ...changed, ...change }])).not.toBe(first);
    }
    expect(merge(row, units)).toBe(first);
  });
});

test("long rows of coefficients are told apart", async () => {
  const { merge } = await setUp(4);
  const long = [1 / 3, 2 / 3, Math.PI];
  expect(merge(long)).toBe(merge([...long]));
  expect(merge([1 / 3, 2 / 3, Math.PI + 1e-9])).not.toBe(merge(long));
});

describe("changed down projections", () => {
  const planOf = (size: number, slot: number, factor: number): LayerPlan => {
    const values = Float32Array.from({ length: 2 * size }, (_, i) => (i < size ? 0 : factor * ((i % 7) - 3)));
    if (slot === 0) values.copyWithin(0, size);
    return { layer: 0, experts: [2, 0], down: packBfloat16(values) };
  };
  const rounded = (values: Float32Array) => {
    roundToDtype(values, "BF16");
    return values;
  };

  test("are the sum, rounded as it would be stored; all else is the expert's own", async () => {
    const { bytes, cache, change, experts, merge } = await setUp(1);
    const size = experts[0]?.down.size ?? 0;
    const plan = planOf(size, 1, 2 ** -8);
    const slot = change(plan, 1, [1, 0, 0]);
    const delta = (_: unknown, i: number) => (((i + size) % 7) - 3) * 2 ** -8;
    const own = experts[0]?.down.data as Float32Array;
    expect(slot.down.data).toEqual(rounded(own.map((value, i) => value + delta(value, i))));
    const { down: _, ...shared } = slot;
    for (const [part, tensor] of Object.entries(shared)) {
      expect(tensor, part).toBe(experts[0]?.[part as "gate"]);
    }
    expect(cache.bytes).toBe(4 * size);
    expect(cache.bytes).toBeLessThan(bytes / 2);
    expect(change(plan, 0, [0, 0, 1])).toBe(experts[2]);
    const row = [0.5, 0.5, 0];
    const second = experts[1]?.down.data as Float32Array;
    const mixed = own.map((value, i) => 0.5 * value + 0.5 * (second[i] as number));
    const merged = change(plan, 1, row);
    expect(merged.down.data).toEqual(rounded(mixed.map((value, i) => value + delta(value, i))));
    expect(merged.up.data).toEqual(merge(row).up.data);
  });

  test("are part of what is looked up, whatever plan has them", async () => {
    const { change, experts, merge } = await setUp(8);
    const size = experts[0]?.down.size ?? 0;
    const row = [0.5, 0, 0.5];
    const plan = planOf(size, 1, 1);
    const first = change(plan, 1, row);
    expect(change(plan, 1, row)).toBe(first);
    expect(change(planOf(size, 1, 1), 1, row)).toBe(first);
    expect(change(planOf(size, 1, 2), 1, row)).not.toBe(first);
    expect(change({ ...plan, layer: 1 }, 1, row)).not.toBe(first);
    expect(change(plan, 0, row)).toBe(merge(row));
    expect(merge(row)).not.toBe(first);
  });
});
