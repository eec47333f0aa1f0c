import {
  allocateBits,
  allocateMcMoe,
  type BitAllocation,
  type MatrixLoss,
  parseSensitivity,
  type Sensitivity,
} from "@coppice/allocate";
import { moeLayers, Rng } from "@coppice/core";
import { randomModel } from "@coppice/plugin-kit";
import { describe, expect, test } from "vitest";

const { model } = randomModel({ seed: 5, layers: 2, experts: 4, topK: 2 });
const sizes: Readonly<Record<string, number>> = { up: 100, down: 70, query: 40, head: 300 };
const bytes = (name: string, bits: number) => (sizes[name.split(" ").at(-1) as string] as number) * bits + 9;

function randomSensitivity(seed: number): Sensitivity {
  const rng = Rng.fromSeed(seed);
  const widths = (scale: number, isOfExpert: boolean) =>
    [2, 4, 8].map((bits) => {
      const loss = scale * rng.uniform() * 5 ** -bits;
      return { bits, loss, ...(isOfExpert && { error: 3 * loss }) };
    });
  const layers = moeLayers(model);
  return {
    model: model.fingerprint,
    quantized: "matrices",
    positions: 10,
    matrices: [
      { name: "head", role: "head", widths: widths(3, false) },
      ...layers.flatMap(({ index, feedForward }): MatrixLoss[] => [
        { name: `${index} query`, role: "query", layer: index, widths: widths(1, false) },
        ...feedForward.experts.flatMap((_, expert) =>
          ["up", "down"].map((role) => ({
            name: `${index} ${expert} ${role}`,
            role,
            layer: index,
            expert,
            widths: widths(expert + 1, true),
          })),
        ),
      ]),
    ],
    experts: layers.flatMap(({ index, feedForward }) =>
      feedForward.experts.map((_, expert) => ({
        layer: index,
        expert,
        share: (expert + 1) / 10,
        gateShare: (expert + 2) / 14,
        dropped: { loss: rng.uniform() * (expert + 1) * 0.02, error: rng.uniform() * (expert + 1) },
      })),
    ),
  };
}

/** Sums of an allocation, recomputed from the table. */
function sums({ matrices, experts }: Sensitivity, found: BitAllocation) {
  let [total, loss] = [0, 0];
  const isDropped = (layer: number | undefined, expert: number | undefined) =>
    expert !== undefined && found.dropped.some((one) => one.layer === layer && one.experts.includes(expert));
  matrices.forEach(({ name, widths, layer, expert }, i) => {
    const { bits } = found.matrices[i] as { bits: number };
    expect(found.matrices[i]?.name).toBe(name);
    expect(bits === 0).toBe(isDropped(layer, expert));
    if (bits === 0) return;
    total += bytes(name, bits);
    loss += widths.find((width) => width.bits === bits)?.loss as number;
  });
  for (const { layer, expert, dropped } of experts) if (isDropped(layer, expert)) loss += dropped?.loss ?? 0;
  return { bytes: total, loss };
}

/** The least loss of all choices of widths, by trying all of them layer by layer and joining at every sum of bytes. */
function exhaustive(
  { matrices, experts }: Sensitivity,
  budget: number,
  mixed: boolean,
  kept: (counts: number[]) => boolean,
) {
  let all = new Map<string, { bytes: number; loss: number; counts: number[] }>();
  const add = (to: typeof all, one: { bytes: number; loss: number; counts: number[] }) => {
    const key = `${one.bytes} ${one.counts.join()}`;
    if (one.bytes <= budget && !((to.get(key)?.loss ?? Number.POSITIVE_INFINITY) <= one.loss))
      to.set(key, one);
  };
  add(all, { bytes: 0, loss: 0, counts: [0, 0] });
  const extend = (options: { bytes: number; loss: number; kept: number[] }[]) => {
    const next: typeof all = new Map();
    for (const so of all.values()) {
      for (const option of options) {
        add(next, {
          bytes: so.bytes + option.bytes,
          loss: so.loss + option.loss,
          counts: so.counts.map((count, i) => count + (option.kept[i] as number)),
        });
      }
    }
    all = next;
  };
  for (const { name, widths, expert } of matrices) {
    if (expert !== undefined) continue;
    extend(widths.map(({ bits, loss }) => ({ bytes: bytes(name, bits), loss, kept: [0, 0] })));
  }
  const layers = moeLayers(model);
  for (const { layer, expert, dropped } of experts) {
    const own = matrices.filter((matrix) => matrix.layer === layer && matrix.expert === expert);
    const [up, down] = own as [MatrixLoss, MatrixLoss];
    const one = layers.map(({ index }) => Number(index === layer));
    extend([
      { bytes: 0, loss: dropped?.loss as number, kept: [0, 0] },
      ...up.widths.flatMap((a) =>
        down.widths
          .filter((b) => mixed || a.bits === b.bits)
          .map((b) => ({
            bytes: bytes(up.name, a.bits) + bytes(down.name, b.bits),
            loss: a.loss + b.loss,
            kept: one,
          })),
      ),
    ]);
  }
  return [...all.values()].filter(({ counts }) => kept(counts)).sort((a, b) => a.loss - b.loss)[0];
}

describe("allocateBits", () => {
  test.each([
    [1, false],
    [2, true],
    [3, true],
  ])("finds the best of all widths and drops, seed %i, mixed widths: %s", (seed, mixed) => {
    const sensitivity = randomSensitivity(seed);
    for (const budget of [3500, 5000, 7000]) {
      for (const [prune, kept] of [
        ["none", (counts: number[]) => counts.every((count) => count === 4)],
        ["free", (counts: number[]) => counts.every((count) => count >= 2)],
        ["uniform", (counts: number[]) => (counts[0] as number) >= 2 && counts[0] === counts[1]],
      ] as const) {
        const best = exhaustive(sensitivity, budget, mixed, kept);
        const request = { model, sensitivity, bytes, budget, prune, mixed };
        if (!best) {
          expect(() => allocateBits(request)).toThrow(expect.objectContaining({ code: "COPPICE_PLAN_KEEP" }));
          continue;
        }
        const found = allocateBits(request);
        expect(found.optimal).toBe(true);
        expect(found.loss).toBeCloseTo(best.loss, 12);
        const own = sums(sensitivity, found);
        expect(own.loss).toBeCloseTo(found.loss, 12);
        expect(own.bytes).toBe(found.bytes);
        expect(found.bytes).toBeLessThanOrEqual(budget);
      }
    }
  });

  test("keeps to the fewest bits", () => {
    const sensitivity = randomSensitivity(4);
    const least = ({ role }: MatrixLoss) => (role === "head" ? 8 : role === "query" ? 4 : 0);
    const { matrices } = allocateBits({ model, sensitivity, bytes, budget: 6000, least });
    const bitsOf = (ending: string) =>
      matrices.filter(({ name }) => name.endsWith(ending)).map(({ bits }) => bits);
    expect(bitsOf("head")).toEqual([8]);
    expect(Math.min(...bitsOf("query"))).toBeGreaterThanOrEqual(4);
    expect(bitsOf("up")).toContain(2);
    expect(() => allocateBits({ model, sensitivity, bytes, budget: 6000, least: () => 16 })).toThrow(
      /head may not have fewer than 16 bits; the widths to choose from are 2, 4, 8/,
    );
  });

  test("refuses what was measured on another model, and says what is needed", () => {
    const sensitivity = randomSensitivity(5);
    const request = { model, sensitivity, bytes, budget: 100 };
    expect(() => allocateBits({ ...request, sensitivity: { ...sensitivity, model: "other" } })).toThrow(
      /"other"/,
    );
    expect(() =>
      allocateBits({ ...request, sensitivity: { ...sensitivity, quantized: "experts" }, mixed: true }),
    ).toThrow(/whole experts were quantized/);
    const least = sensitivity.matrices.reduce((sum, { name }) => sum + bytes(name, 2), 0);
    expect(() => allocateBits(request)).toThrow(`takes ${least} bytes, the budget is 100`);
    // Two of four experts are kept, at 2 bits.
    const pruned = least - 4 * (bytes("up", 2) + bytes("down", 2));
    expect(() => allocateBits({ ...request, prune: "uniform" })).toThrow(`takes ${pruned} bytes`);
  });
});

describe("allocateMcMoe", () => {
  test.each([
    [4.5, [2, 4, 8], 4],
    [2, [0, 2, 4], 4],
    [2.5, [2, 4], 8],
  ])("is the best of all widths with %f bits on average out of %j", (average, widths, others) => {
    const sensitivity = randomSensitivity(6);
    const found = allocateMcMoe({ model, sensitivity, bytes, average, widths, others });
    let expected = 0;
    for (const { index } of moeLayers(model)) {
      const experts = sensitivity.experts.filter(({ layer }) => layer === index);
      const losses = experts.map(({ expert, share, gateShare, dropped }) => (bits: number) => {
        const own = sensitivity.matrices.filter(
          (matrix) => matrix.layer === index && matrix.expert === expert,
        );
        const errors = own.map((matrix) => matrix.widths.find((width) => width.bits === bits)?.error ?? 0);
        const epsilon = Math.sqrt(
          bits === 0 ? (dropped?.error as number) : errors.reduce((a, b) => a + b, 0),
        );
        return share * gateShare ** 1.5 * epsilon ** 2;
      });
      let best = Number.POSITIVE_INFINITY;
      const largest = [...widths].sort((a, b) => b - a).slice(0, 2);
      for (let code = 0; code < widths.length ** 4; code++) {
        const bits = [0, 1, 2, 3].map(
          (i) => widths[Math.floor(code / widths.length ** i) % widths.length] as number,
        );
        if (bits.reduce((a, b) => a + b, 0) > 4 * average) continue;
        if (!largest.every((width) => bits.includes(width)) || bits.filter((b) => b > 0).length < 2) continue;
        best = Math.min(
          best,
          losses.reduce((sum, loss, i) => sum + loss(bits[i] as number), 0),
        );
      }
      expected += best;
    }
    expect(found.loss).toBeCloseTo(expected, 12);
    expect(found.matrices.find(({ name }) => name === "head")?.bits).toBe(others);
    expect(sums(sensitivity, found).bytes).toBe(found.bytes);
  });

  test("refuses widths that were not measured, and too few bits", () => {
    const request = { model, sensitivity: randomSensitivity(7), bytes };
    expect(() => allocateMcMoe({ ...request, average: 3, widths: [1, 2] })).toThrow(
      /not measured with 1 bits/,
    );
    expect(() => allocateMcMoe({ ...request, average: 3.9 })).toThrow(
      "the 4 experts of layer 0 have 15 bits to share; one with each of 8 and 4 and the others with 2 take 16",
    );
  });
});

describe("parseSensitivity", () => {
  test("gives back what was written, and refuses everything else", () => {
    const sensitivity = randomSensitivity(8);
    const copy = () => JSON.parse(JSON.stringify(sensitivity));
    expect(parseSensitivity(copy(), model)).toEqual(sensitivity);
    const refused = (
      change: (table: ReturnType<typeof copy>) => unknown,
      text: RegExp,
      code = "COPPICE_STATS_FORMAT",
    ) => {
      const table = copy();
      const value = change(table) ?? table;
      expect(() => parseSensitivity(value, model)).toThrow(
        expect.objectContaining({ code, message: expect.stringMatching(text) }),
      );
    };
    const set = (text: string, value: unknown) => (table: ReturnType<typeof copy>) => {
      const keys = text.split(".");
      const last = keys.pop() as string;
      keys.reduce((object, key) => object[key], table)[last] = value;
    };
    refused(() => [], /is a list of 0, expected an object/);
    refused(() => "text", /is "text", expected an object/);
    refused(set("model", "other"), /"other"/, "COPPICE_STATS_MODEL");
    refused(set("quantized", "layers"), /quantized .* is "layers"/);
    refused(set("positions", -1), /positions .* is -1/);
    refused(set("matrices", {}), /matrices .* is an object, expected a list/);
    refused(set("matrices.1.layer", 0.5), /layer of matrix 1 .* is 0\.5/);
    refused(set("matrices.0.name", null), /name of matrix 0 .* is null, expected text/);
    refused(set("matrices.0.widths.1.loss", "x"), /loss of matrix 0 .* is "x"/);
    refused(set("experts.2.dropped.error", undefined), /error of expert 2 .* is absent/);
    refused(set("experts.2.share", Number.NaN), /share of expert 2/);
  });
});
