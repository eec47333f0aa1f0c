import type { Rng } from "@coppice/core";
import { type Genome, type GroupGenome, type Matrix, roundCoefficient } from "./genome.js";

/** A change of one row of one group's matrix: what a step of the merge phase is made of. */
export interface RowDelta {
  readonly group: number;
  readonly matrix: "weights" | "router";
  readonly slot: number;
  readonly values: readonly number[];
}

/** Normal steps of standard deviation `sigma` for `rows` rows, drawn from all rows of the genome. */
export function drawSteps(
  rng: Rng,
  genome: Genome,
  options: { rows: number; sigma: number; router: boolean },
): RowDelta[] {
  const matrices = options.router ? (["weights", "router"] as const) : (["weights"] as const);
  const places = genome.flatMap((group, g) =>
    matrices.flatMap((matrix) => group.weights.map((_, slot) => ({ group: g, matrix, slot }))),
  );
  return rng.sample(places.length, options.rows).map((i) => {
    const place = places[i] as (typeof places)[number];
    const row = genome[place.group]?.weights[place.slot] as readonly number[];
    return { ...place, values: row.map(() => rng.normal() * options.sigma) };
  });
}

/** `genome` with the steps added, coefficients rounded as in a plan. */
export function applySteps(genome: Genome, steps: readonly RowDelta[]): Genome {
  const result = genome.map((group): GroupGenome => ({ ...group }));
  for (const { group, matrix, slot, values } of steps) {
    const target = result[group] as GroupGenome;
    const rows: Matrix = target[matrix].map((row, i) =>
      i === slot ? row.map((value, j) => roundCoefficient(value + (values[j] as number))) : row,
    );
    result[group] = { ...target, [matrix]: rows };
  }
  return result;
}
