import { createPlan, type LayerPlan, type Plan } from "@coppice/core";
import type { Layout } from "./layout.js";

/** Kept experts per group, each list ascending: the genome of the prune phase. */
export type Subsets = readonly (readonly number[])[];

/** Rows of slots, columns of original experts. */
export type Matrix = readonly (readonly number[])[];

/**
 * Expert-merging and router-map matrices of one group (W_EM and W_RM of EEP, arXiv 2407.00945 section 3.1), both
 * [keep][experts]: the genome of the merge phase, and of both phases as published.
 */
export interface GroupGenome {
  readonly weights: Matrix;
  readonly router: Matrix;
}

export type Genome = readonly GroupGenome[];

/** Decimals of a coefficient in a plan: beyond float32's, and short in a file. */
const decimals = 6;

/** One-hot rows that pick `subset`, slot i being expert `subset[i]`. */
export function oneHot(subset: readonly number[], experts: number): number[][] {
  return subset.map((kept) => Array.from({ length: experts }, (_, expert) => (expert === kept ? 1 : 0)));
}

/** The genome that keeps `subsets` unchanged: W_EM = W_RM = one-hot. */
export function genomeFromSubsets(layout: Layout, subsets: Subsets): Genome {
  return subsets.map((subset, g) => {
    const { experts } = layout.groups[g] as Layout["groups"][number];
    return { weights: oneHot(subset, experts), router: oneHot(subset, experts) };
  });
}

/** Text that is equal exactly when two subset genomes are. */
export function subsetsKey(subsets: Subsets): string {
  return subsets.map((subset) => subset.join(",")).join(";");
}

export function planFromSubsets(layout: Layout, subsets: Subsets): Plan {
  return toPlan(layout, (g) => ({ experts: subsets[g] as readonly number[] }));
}

/** The plan of a genome: parts that are one-hot are left out of it, coefficients are rounded to 6 decimals. */
export function planFromGenome(layout: Layout, genome: Genome): Plan {
  const parts = genome.map(({ weights, router }) => {
    const stock = isOneHot(router);
    const experts = stock ? router.map((row) => row.indexOf(1)) : dominantExperts(router);
    return {
      experts,
      ...(!sameRows(weights, experts) && { merge: rounded(weights) }),
      ...(!stock && { routerMap: rounded(router) }),
    };
  });
  return toPlan(layout, (g) => parts[g] as Omit<LayerPlan, "layer">);
}

function toPlan(layout: Layout, part: (group: number) => Omit<LayerPlan, "layer">): Plan {
  const layers = layout.groups.flatMap((group, g) =>
    group.layers.map(
      (layer): LayerPlan => ({
        layer,
        ...part(g),
        ...(layout.topK !== undefined && { topK: layout.topK }),
      }),
    ),
  );
  return createPlan(layout.model, layers);
}

/** True when every row is one 1 and else 0, no two in the same column. */
export function isOneHot(matrix: Matrix): boolean {
  const columns = matrix.map((row) => row.indexOf(1));
  return (
    new Set(columns).size === matrix.length &&
    matrix.every((row, slot) => row.every((value, column) => value === (column === columns[slot] ? 1 : 0)))
  );
}

/**
 * One expert for every slot of a router map, all different: entries are taken from the largest down, skipping slots
 * and experts that are taken.
 */
export function dominantExperts(map: Matrix): number[] {
  const entries = map.flatMap((row, slot) => row.map((value, expert) => ({ slot, expert, value })));
  entries.sort((a, b) => b.value - a.value || a.slot - b.slot || a.expert - b.expert);
  const chosen = new Array<number>(map.length).fill(-1);
  const taken = new Set<number>();
  for (const { slot, expert } of entries) {
    if (chosen[slot] !== -1 || taken.has(expert)) continue;
    chosen[slot] = expert;
    taken.add(expert);
  }
  return chosen;
}

function sameRows(weights: Matrix, experts: readonly number[]): boolean {
  return weights.every((row, slot) =>
    row.every((value, column) => value === (column === experts[slot] ? 1 : 0)),
  );
}

function rounded(matrix: Matrix): number[][] {
  return matrix.map((row) => row.map(roundCoefficient));
}

/** `value` with 6 decimals; -0 becomes 0. */
export function roundCoefficient(value: number): number {
  return Number(value.toFixed(decimals)) + 0;
}

/**
 * A short text that is equal for equal genomes, coefficients as `roundCoefficient` leaves them: two 32-bit
 * multiplicative hashes. The coefficients themselves take megabytes in large models.
 */
export function genomeKey(genome: Genome): string {
  let a = 0x811c9dc5;
  let b = 0x01000193;
  for (const { weights, router } of genome) {
    for (const row of [...weights, ...router]) {
      for (const value of row) {
        const scaled = Math.round(value * 10 ** decimals) | 0;
        a = Math.imul(a ^ scaled, 0x01000193);
        b = Math.imul(b ^ (scaled + 0x9e3779b9), 0x85ebca6b);
        b ^= b >>> 15;
      }
    }
  }
  return `${(a >>> 0).toString(36)}.${(b >>> 0).toString(36)}`;
}
