import type { ChoiceProgram } from "@coppice/core";
import type { ModelData } from "highs";

/** A program as a mixed-integer model. */
export interface ChoiceModel {
  readonly data: ModelData;
  /** Column of the first option of every unit, group by group. */
  readonly columns: readonly (readonly number[])[];
  /** Loss that the objective's 1 stands for. */
  readonly unit: number;
  /** What all units lose at least, which the objective leaves out. */
  readonly least: number;
}

/** Objectives lie in a range in which the solver's absolute tolerances are far below what matters. */
const largestObjective = 1e5;
const integer = 1;

/**
 * One column of 0 or 1 per option, x; one row per unit, Σ x = 1; one per budget, Σ cost x <= budget; one per rule of counts. Where a
 * group may have few different options, a column y per place says that it is used: x <= y for every option, and Σ y <= their number.
 */
export function choiceModel({ groups, budgets }: ChoiceProgram): ChoiceModel {
  const rows = new Rows();
  const objective: number[] = [];
  const columns: number[][] = [];
  const budgetRows = budgets.map((budget) => rows.add(Number.NEGATIVE_INFINITY, budget));
  let [least, most] = [0, 0];
  for (const { units, different, counts = [] } of groups) {
    const starts: number[] = [];
    for (const options of units) {
      const smallest = Math.min(...options.map(({ loss }) => loss));
      least += smallest;
      starts.push(objective.length);
      const one = rows.add(1, 1);
      for (const { loss, costs } of options) {
        const column = objective.push(loss - smallest) - 1;
        most = Math.max(most, loss - smallest);
        rows.set(one, column, 1);
        costs.forEach((cost, k) => {
          rows.set(budgetRows[k] as number, column, cost);
        });
      }
    }
    for (const rule of counts) {
      const row = rows.add(rule.least ?? 0, rule.most ?? Number.POSITIVE_INFINITY);
      units.forEach((options, unit) => {
        options.forEach((_, option) => {
          if (rule.counts(unit, option)) rows.set(row, (starts[unit] as number) + option, 1);
        });
      });
    }
    if (different !== undefined) {
      const used = rows.add(Number.NEGATIVE_INFINITY, different);
      units[0]?.forEach((_, option) => {
        const column = objective.push(0) - 1;
        rows.set(used, column, 1);
        for (const start of starts) {
          const row = rows.add(Number.NEGATIVE_INFINITY, 0);
          rows.set(row, start + option, 1);
          rows.set(row, column, -1);
        }
      });
    }
    columns.push(starts);
  }
  const unit = most > 0 ? most / largestObjective : 1;
  const count = objective.length;
  return {
    columns,
    unit,
    least,
    data: {
      numCols: count,
      numRows: rows.lower.length,
      colCost: objective.map((loss) => loss / unit),
      colLower: new Float64Array(count),
      colUpper: new Float64Array(count).fill(1),
      rowLower: rows.lower,
      rowUpper: rows.upper,
      matrix: { format: "csr", numRows: rows.lower.length, numCols: count, ...rows.entries() },
      integrality: new Int32Array(count).fill(integer),
    },
  };
}

class Rows {
  readonly lower: number[] = [];
  readonly upper: number[] = [];
  readonly #columns: number[][] = [];
  readonly #values: number[][] = [];

  add(lower: number, upper: number): number {
    this.#columns.push([]);
    this.#values.push([]);
    this.upper.push(upper);
    return this.lower.push(lower) - 1;
  }

  set(row: number, column: number, value: number): void {
    if (value === 0) return;
    (this.#columns[row] as number[]).push(column);
    (this.#values[row] as number[]).push(value);
  }

  entries() {
    const starts = [0];
    for (const columns of this.#columns) starts.push((starts.at(-1) as number) + columns.length);
    return {
      starts: Int32Array.from(starts),
      indices: Int32Array.from(this.#columns.flat()),
      values: Float64Array.from(this.#values.flat()),
    };
  }
}
