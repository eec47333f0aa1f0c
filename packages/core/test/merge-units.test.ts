import { mergeUnitColumns, mergeUnitRows, Rng, type UnitSource, type UnitValues } from "@coppice/core";
import { describe, expect, it } from "vitest";

const width = 7;
const hidden = 5;
const rng = Rng.fromSeed(3);
const random = (length: number) => Float32Array.from({ length }, () => rng.normal());
const factors = () => Array.from({ length: width }, () => rng.normal());

const sources: UnitSource[] = [
  { expert: 0, to: [0, 1, 2, 3, 4, 5, 6], rows: 0.5, columns: 2 },
  { expert: 2, to: [6, 5, 4, 3, 2, 1, 0], rows: factors(), columns: factors() },
  { expert: 5, to: [3, 3, 3, -1, 0, -1, 6], rows: factors(), columns: 0.25 },
];

/** The sum over all units that go to `target`, in float64, rounded once. */
function slow(values: UnitValues[], kind: "rows" | "columns", target: number, other: number): number {
  let sum = 0;
  for (const { source, values: matrix } of values) {
    for (let unit = 0; unit < width; unit++) {
      if (source.to[unit] !== target) continue;
      const given = source[kind];
      const factor = typeof given === "number" ? given : (given[unit] as number);
      const at = kind === "rows" ? unit * hidden + other : other * width + unit;
      sum += factor * (matrix[at] as number);
    }
  }
  return Math.fround(sum);
}

describe("mergeUnitRows and mergeUnitColumns", () => {
  const values = sources.map((source) => ({ source, values: random(width * hidden) }));

  it("sum the rows of the units that go to each", () => {
    const out = new Float32Array(width * hidden).fill(9);
    mergeUnitRows(values, hidden, out);
    for (let i = 0; i < out.length; i++) {
      expect(out[i]).toBe(slow(values, "rows", Math.floor(i / hidden), i % hidden));
    }
  });

  it("sum the columns, in pieces too", () => {
    const out = new Float32Array(width * hidden).fill(9);
    mergeUnitColumns(values, width, out);
    for (let i = 0; i < out.length; i++) {
      expect(out[i]).toBe(slow(values, "columns", i % width, Math.floor(i / width)));
    }
    const piece = new Float32Array(2 * width);
    const part = values.map(({ source, values: all }) => ({
      source,
      values: all.subarray(width, 3 * width),
    }));
    mergeUnitColumns(part, width, piece);
    expect(piece).toEqual(out.slice(width, 3 * width));
  });

  it("give back an expert whose units only change places", () => {
    const to = [4, 2, 0, 6, 1, 3, 5];
    const gate = random(width * hidden);
    const permuted = new Float32Array(width * hidden);
    const source = { expert: 0, to, rows: 1, columns: 1 };
    mergeUnitRows([{ source, values: gate }], hidden, permuted);
    const back = new Float32Array(width * hidden);
    const inverse = { expert: 0, to: to.map((_, unit) => to.indexOf(unit)), rows: 1, columns: 1 };
    mergeUnitRows([{ source: inverse, values: permuted }], hidden, back);
    expect(permuted).not.toEqual(gate);
    expect(back).toEqual(gate);
  });
});
