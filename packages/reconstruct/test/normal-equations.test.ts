import { Rng } from "@coppice/core";
import { describe, expect, test } from "vitest";
import { groupedSlots, type LayerBatch, NormalEquations } from "../src/normal-equations.js";
import { plainProducts } from "../src/products.js";

const [tokens, slots, topK, width, hidden] = [40, 3, 2, 4, 5] as const;

function randomBatch(seed: number): LayerBatch {
  const rng = Rng.fromSeed(seed);
  const normal = (length: number) => Float32Array.from({ length }, () => rng.normal());
  const chosen = Array.from({ length: tokens }, () => rng.sample(slots, topK));
  return {
    tokens,
    topK,
    // Some choices are skipped.
    slots: Int32Array.from(chosen.flat(), (slot, i) => (i % 7 === 3 ? -1 : slot)),
    gates: normal(tokens * topK),
    units: normal(tokens * slots * width),
    missing: { stream: normal(tokens * hidden), layer: normal(tokens * hidden) },
    weights: Float32Array.from({ length: tokens }, (_, t) => (t % 3 === 0 ? 10 : 1)),
  };
}

/** Gate weight of a slot on a token, 0 where it was not chosen. */
function gateOf({ slots, gates }: LayerBatch, token: number, slot: number): number {
  for (let k = 0; k < topK; k++) {
    if (slots[token * topK + k] === slot) return gates[token * topK + k] as number;
  }
  return 0;
}

/**
 * The least-squares problem written out: one row per token with the units of all slots in `group`, weighted, and solved
 * by Gauss-Jordan elimination.
 */
function slowly(batches: readonly LayerBatch[], group: readonly number[], ridge: number): number[][] {
  const n = group.length * width;
  const a = Array.from({ length: n }, () => new Array<number>(n + hidden).fill(0));
  for (const batch of batches) {
    for (let t = 0; t < tokens; t++) {
      const row = group.flatMap((slot) =>
        Array.from(
          { length: width },
          (_, u) => gateOf(batch, t, slot) * (batch.units[(t * slots + slot) * width + u] as number),
        ),
      );
      const squares = Array.from({ length: slots }, (_, slot) => gateOf(batch, t, slot) ** 2);
      const all = squares.reduce((sum, square) => sum + square, 0);
      const share = all > 0 ? group.reduce((sum, slot) => sum + (squares[slot] as number), 0) / all : 0;
      const weight = batch.weights[t] as number;
      for (let i = 0; i < n; i++) {
        const out = a[i] as number[];
        for (let j = 0; j < n; j++)
          out[j] = (out[j] as number) + weight * (row[i] as number) * (row[j] as number);
        for (let h = 0; h < hidden; h++) {
          const missing = share * (batch.missing.stream[t * hidden + h] as number);
          out[n + h] = (out[n + h] as number) + weight * (row[i] as number) * missing;
        }
      }
    }
  }
  const mean = a.reduce((sum, row, i) => sum + (row[i] as number), 0) / n;
  a.forEach((row, i) => {
    row[i] = (row[i] as number) + ridge * mean;
  });
  for (let i = 0; i < n; i++) {
    const pivot = a[i] as number[];
    const by = pivot[i] as number;
    for (let c = 0; c < pivot.length; c++) pivot[c] = (pivot[c] as number) / by;
    a.forEach((row, r) => {
      if (r === i) return;
      const factor = row[i] as number;
      for (let c = 0; c < row.length; c++) row[c] = (row[c] as number) - factor * (pivot[c] as number);
    });
  }
  return a.map((row) => row.slice(n));
}

async function equationsOf(batches: readonly LayerBatch[], most?: number): Promise<NormalEquations> {
  const equations = new NormalEquations({ slots, width, hidden }, plainProducts, most);
  for (const batch of batches) await equations.add(batch);
  return equations;
}

test("puts as many slots together as one system may have", () => {
  expect(groupedSlots(5, 10, 25)).toEqual([[0, 1], [2, 3], [4]]);
  expect(groupedSlots(2, 100, 25)).toEqual([[0], [1]]);
  expect(groupedSlots(3, 4)).toEqual([[0, 1, 2]]);
});

describe("NormalEquations", () => {
  const batches = [randomBatch(1), randomBatch(2)];

  test("solves the weighted least-squares problem of all slots", async () => {
    const got = (await equationsOf(batches)).solve("stream", 0.3);
    const want = slowly(batches, [0, 1, 2], 0.3);
    expect(got).toHaveLength(slots * hidden * width);
    for (let slot = 0; slot < slots; slot++) {
      for (let h = 0; h < hidden; h++) {
        for (let u = 0; u < width; u++) {
          const value = got[(slot * hidden + h) * width + u] as number;
          expect(value).toBeCloseTo(want[slot * width + u]?.[h] as number, 5);
        }
      }
    }
  });

  test("fits groups of slots, each to its share, where all together are too many", async () => {
    const got = (await equationsOf(batches, 2 * width)).solve("stream", 0.1);
    const parts = [
      { group: [0, 1], want: slowly(batches, [0, 1], 0.1) },
      { group: [2], want: slowly(batches, [2], 0.1) },
    ];
    for (const { group, want } of parts) {
      group.forEach((slot, place) => {
        for (let h = 0; h < hidden; h++) {
          for (let u = 0; u < width; u++) {
            const value = got[(slot * hidden + h) * width + u] as number;
            expect(value).toBeCloseTo(want[place * width + u]?.[h] as number, 5);
          }
        }
      });
    }
  });

  test("changes nothing where no token chose a slot", async () => {
    const silent = { ...randomBatch(3), slots: new Int32Array(tokens * topK).fill(-1) };
    const got = (await equationsOf([silent])).solve("layer", 1);
    expect(got.every((value) => value === 0)).toBe(true);
  });

  test("refuses values that are no numbers", async () => {
    const broken = randomBatch(4);
    broken.units.fill(Number.NaN, 0, 4 * slots * width);
    const equations = await equationsOf([broken, randomBatch(5)]);
    expect(() => equations.solve("stream", 1)).toThrow(
      expect.objectContaining({ code: "COPPICE_FORMAT_NAN" }),
    );
  });
});
