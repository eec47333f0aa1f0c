import { type LayerPlan, mergeUnitColumns, mergeUnitRows, type UnitSource } from "@coppice/core";
import { expect } from "vitest";
import { apart, atUnitLength, type SlowExperts } from "./slow-layers.js";

/** Members of every slot, ascending, from the coefficients of its row. */
export function membersOf({ merge = [] }: LayerPlan): number[][] {
  return merge.map((row) => row.flatMap((weight, expert) => (weight > 0 ? [expert] : [])));
}

/** Checks one row of coefficients: weights over the members, which sum to 1. */
export function expectRow(
  row: readonly number[] | undefined,
  members: readonly number[],
  weights: readonly number[],
): void {
  const total = members.reduce((sum, expert) => sum + (weights[expert] as number), 0);
  const expected = weights.map((weight, expert) => {
    if (!members.includes(expert)) return 0;
    return total > 0 ? weight / total : 1 / members.length;
  });
  expect(row).toHaveLength(weights.length);
  expect(row?.reduce((a, b) => a + b, 0)).toBeCloseTo(1, 12);
  row?.forEach((value, i) => {
    expect(Math.abs(value - (expected[i] as number))).toBeLessThan(1e-6);
  });
}

export type View = "weights" | "activations" | "both";

/** The vectors by which units are compared, [set][unit]. */
export function viewsOf(slow: SlowExperts, expert: number, view: View): number[][][] {
  const weights = (slow.vectors[expert] as number[][]).map((vector) => [...vector]);
  const tokens = slow.units[expert] as number[][];
  const activations = weights.map((_, unit) => tokens.map((units) => Math.fround(units[unit] as number)));
  if (view === "both") return [weights, activations];
  return [view === "weights" ? weights : activations];
}

/** ‖a/‖a‖ - b/‖b‖‖ of all pairs of units, added up over the sets of vectors. */
export function unitCosts(a: readonly number[][][], b: readonly number[][][]): number[][] {
  const [as, bs] = [a.map((set) => set.map(atUnitLength)), b.map((set) => set.map(atUnitLength))];
  return (as[0] as number[][]).map((_, i) =>
    (bs[0] as number[][]).map((_, j) =>
      as.reduce((sum, set, s) => sum + apart(set[i] as number[], bs[s]?.[j] as number[]), 0),
    ),
  );
}

/**
 * The assignment of least cost, one row after the other along the shortest path of the residual graph, which
 * Bellman-Ford finds without any prices.
 */
export function slowAssign(costs: readonly (readonly number[])[]): number[] {
  const n = costs.length;
  const columnOf = new Array<number>(n).fill(-1);
  const rowOf = new Array<number>(n).fill(-1);
  for (let start = 0; start < n; start++) {
    const toRow = new Array<number>(n).fill(Number.POSITIVE_INFINITY);
    const toColumn = new Array<number>(n).fill(Number.POSITIVE_INFINITY);
    const from = new Array<number>(n).fill(-1);
    toRow[start] = 0;
    for (let changed = true; changed; ) {
      changed = false;
      for (let row = 0; row < n; row++) {
        for (let column = 0; column < n; column++) {
          const cost = costs[row]?.[column] as number;
          const there = (toRow[row] as number) + cost;
          if (columnOf[row] !== column && there < (toColumn[column] as number) - 1e-13) {
            toColumn[column] = there;
            from[column] = row;
            changed = true;
          }
          const back = (toColumn[column] as number) - cost;
          if (columnOf[row] === column && back < (toRow[row] as number) - 1e-13) {
            toRow[row] = back;
            changed = true;
          }
        }
      }
    }
    let column = toColumn.reduce(
      (best, value, i) => (rowOf[i] === -1 && (best === -1 || value < (toColumn[best] as number)) ? i : best),
      -1,
    );
    while (column !== -1) {
      const row = from[column] as number;
      const before = columnOf[row] as number;
      columnOf[row] = column;
      rowOf[column] = row;
      column = row === start ? -1 : before;
    }
  }
  return columnOf;
}

/** The units of a slot as a plan describes them, [unit]: row of gate, row of up and column of down side by side. */
export function mergedUnits(slow: SlowExperts, sources: readonly UnitSource[]): number[][] {
  const width = slow.vectors[0]?.length as number;
  const { gate, gateBias, up, upBias } = slow.layer.feedForward.experts[0] as never as Record<string, object>;
  const size = slow.vectors[0]?.[0]?.length as number;
  const hidden = slow.outputs[0]?.[0]?.length as number;
  const rowSize = size - hidden;
  expect(rowSize).toBe((gate ? hidden : 0) + (up ? hidden : 0) + (gateBias ? 1 : 0) + (upBias ? 1 : 0));
  const rows = new Float32Array(width * rowSize);
  mergeUnitRows(
    sources.map((source) => ({
      source,
      values: Float32Array.from(
        (slow.vectors[source.expert] as number[][]).flatMap((vector) => vector.slice(0, rowSize)),
      ),
    })),
    rowSize,
    rows,
  );
  const columns = new Float32Array(width * hidden);
  mergeUnitColumns(
    sources.map((source) => ({
      source,
      values: Float32Array.from({ length: width * hidden }, (_, i) => {
        return slow.vectors[source.expert]?.[i % width]?.[rowSize + Math.floor(i / width)] as number;
      }),
    })),
    width,
    columns,
  );
  return Array.from({ length: width }, (_, u) => [
    ...rows.subarray(u * rowSize, (u + 1) * rowSize),
    ...Array.from({ length: hidden }, (_, h) => columns[h * width + u] as number),
  ]);
}
