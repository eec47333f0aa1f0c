import type { Rng } from "@coppice/core";
import type { Genome, GroupGenome, Matrix } from "./genome.js";

/** Which matrices of a group an operator changes. */
export interface Gate {
  readonly weights: boolean;
  readonly router: boolean;
}

/** Rows whose sum is nearer to 0 than this are not divided by it. */
const smallestRowSum = 1e-3;

/**
 * Draws which groups change: each matrix with `probability`, all over again until at least one does
 * (EEP released code, `search.py`: weight_change_prob and transfer_change_prob 0.25).
 */
export function drawGates(rng: Rng, groups: number, probability: number): Gate[] {
  for (;;) {
    const gates = Array.from({ length: groups }, () => ({
      weights: rng.bernoulli(probability),
      router: rng.bernoulli(probability),
    }));
    if (gates.some((gate) => gate.weights || gate.router)) return gates;
  }
}

/**
 * Prune-phase mutation: in every group whose weights gate is on, each row is re-pointed with `probability` to a
 * uniformly random expert that no other row uses, possibly its own; the router row follows
 * (EEP released code, `discrete_mutate`, prob 0.15).
 */
export function repointRows(rng: Rng, genome: Genome, gates: readonly Gate[], probability: number): Genome {
  return genome.map((group, g) => {
    if (!gates[g]?.weights) return group;
    const rows = group.weights.map((row) => [...row]);
    for (let i = 0; i < rows.length; i++) {
      if (!rng.bernoulli(probability)) continue;
      const others = rows.filter((_, other) => other !== i);
      const experts = (rows[i] as number[]).length;
      const free = Array.from({ length: experts }, (_, e) => e).filter(
        (expert) => !others.some((row) => row[expert] === 1),
      );
      const chosen = rng.pick(free);
      rows[i] = Array.from({ length: experts }, (_, e) => (e === chosen ? 1 : 0));
    }
    return { weights: rows, router: rows };
  });
}

/**
 * Merge-phase crossover: a matrix whose gate is on takes each row from `a` with probability `fromFirst`, else from
 * `b`; a matrix whose gate is off is taken whole the same way (EEP released code, `crossover`, 0.6).
 *
 * With `stock`, where every slot needs a router row of its own, the two rows of a slot stay together, and a row of
 * `b` whose router row is already in use gives way to that of `a`.
 */
export function crossRows(
  rng: Rng,
  a: Genome,
  b: Genome,
  gates: readonly Gate[],
  options: { fromFirst: number; stock: boolean },
): Genome {
  const { fromFirst, stock } = options;
  const pick = (on: boolean, first: Matrix, second: Matrix): Matrix =>
    on
      ? first.map((row, i) => (rng.bernoulli(fromFirst) ? row : (second[i] as readonly number[])))
      : rng.bernoulli(fromFirst)
        ? first
        : second;
  return a.map((first, g) => {
    const second = b[g] as GroupGenome;
    const gate = gates[g] as Gate;
    if (!stock) {
      return {
        weights: pick(gate.weights, first.weights, second.weights),
        router: pick(gate.router, first.router, second.router),
      };
    }
    if (!gate.weights) return rng.bernoulli(fromFirst) ? first : second;
    const fromB = first.weights.map(() => !rng.bernoulli(fromFirst));
    return pairedRows(first, second, fromB);
  });
}

/** Slots of `a`, with those of `b` where `fromB` says so and no router row would be used twice. */
function pairedRows(a: GroupGenome, b: GroupGenome, fromB: readonly boolean[]): GroupGenome {
  const expert = (group: GroupGenome, slot: number) => (group.router[slot] as readonly number[]).indexOf(1);
  const own = a.router.map((_, slot) => expert(a, slot));
  const chosen = [...own];
  fromB.forEach((wanted, slot) => {
    const other = expert(b, slot);
    if (wanted && !chosen.some((used, i) => i !== slot && used === other)) chosen[slot] = other;
    else if (wanted) fromB = fromB.with(slot, false);
  });
  const row = (slot: number) => (fromB[slot] ? b : a);
  return {
    weights: a.weights.map((_, slot) => row(slot).weights[slot] as readonly number[]),
    router: a.router.map((_, slot) => row(slot).router[slot] as readonly number[]),
  };
}

/**
 * Merge-phase mutation: in every matrix whose gate is on, each entry gets N(0,1) * sigma added with `probability`
 * (EEP released code, `mutate`, prob 0.25, scale 0.065). With `stock` the router stays as it is.
 */
export function perturbEntries(
  rng: Rng,
  genome: Genome,
  gates: readonly Gate[],
  options: { probability: number; sigma: number; stock: boolean },
): Genome {
  const move = (matrix: Matrix): Matrix =>
    matrix.map((row) =>
      row.map((value) => (rng.bernoulli(options.probability) ? value + rng.normal() * options.sigma : value)),
    );
  return genome.map((group, g) => {
    const gate = gates[g] as Gate;
    return {
      weights: gate.weights ? move(group.weights) : group.weights,
      router: gate.router && !options.stock ? move(group.router) : group.router,
    };
  });
}

/**
 * Divides every row of W_EM by its sum (EEP released code, `norm_prob` 0.1 per child). The released code divides by
 * any sum; rows that sum to nearly 0 stay as they are here, because the quotient would be useless or infinite.
 */
export function normalizeRows(genome: Genome): Genome {
  return genome.map(({ weights, router }) => ({
    router,
    weights: weights.map((row) => {
      const sum = row.reduce((total, value) => total + value, 0);
      return Math.abs(sum) < smallestRowSum || sum === 1 ? row : row.map((value) => value / sum);
    }),
  }));
}
