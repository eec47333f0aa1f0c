/** A solution as NSGA-II sees it. */
export interface Solution {
  /** Every objective, the larger the better. */
  readonly goals: readonly number[];
  /** True when the plan could not be evaluated: any plan that could is better (constrained domination). */
  readonly failed: boolean;
}

/** True when `a` is at least as good in every objective and better in one; of failures none is better. */
export function dominates(a: Solution, b: Solution): boolean {
  if (a.failed || b.failed) return !a.failed && b.failed;
  let better = false;
  for (let i = 0; i < a.goals.length; i++) {
    const [x, y] = [a.goals[i] as number, b.goals[i] as number];
    if (x < y) return false;
    if (x > y) better = true;
  }
  return better;
}

/**
 * Indices in fronts: the first holds what nothing dominates, the second what only the first dominates, and so on
 * (fast non-dominated sort: K. Deb and others, *A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II*, IEEE
 * Transactions on Evolutionary Computation 6(2), 2002, section III.A).
 */
export function sortedFronts(solutions: readonly Solution[]): number[][] {
  const dominated = solutions.map(() => [] as number[]);
  const dominators = solutions.map(() => 0);
  for (let i = 0; i < solutions.length; i++) {
    for (let j = 0; j < solutions.length; j++) {
      if (!dominates(solutions[i] as Solution, solutions[j] as Solution)) continue;
      dominated[i]?.push(j);
      dominators[j] = (dominators[j] as number) + 1;
    }
  }
  const fronts: number[][] = [];
  let front = [...solutions.keys()].filter((i) => dominators[i] === 0);
  while (front.length > 0) {
    fronts.push(front);
    const next: number[] = [];
    for (const i of front) {
      for (const j of dominated[i] as number[]) {
        dominators[j] = (dominators[j] as number) - 1;
        if (dominators[j] === 0) next.push(j);
      }
    }
    front = next.sort((a, b) => a - b);
  }
  return fronts;
}

/**
 * How lonely each solution of one front is: the sum over objectives of the distance between its neighbours, as a share
 * of the front's range; infinite at the ends (section III.B).
 */
export function crowdingDistances(front: readonly Solution[]): number[] {
  const distances = front.map(() => 0);
  const objectives = front[0]?.goals.length ?? 0;
  for (let objective = 0; objective < objectives; objective++) {
    const value = (i: number) => front[i]?.goals[objective] as number;
    const order = [...front.keys()].sort((a, b) => compare(value(a), value(b)));
    const [first, last] = [order[0] as number, order.at(-1) as number];
    const range = value(last) - value(first);
    distances[first] = Number.POSITIVE_INFINITY;
    distances[last] = Number.POSITIVE_INFINITY;
    // Where all are equal, or none could be evaluated, the objective tells nothing.
    if (!(range > 0) || !Number.isFinite(range)) continue;
    order.slice(1, -1).forEach((i, at) => {
      const gap = value(order[at + 2] as number) - value(order[at] as number);
      distances[i] = (distances[i] as number) + gap / range;
    });
  }
  return distances;
}

/** -Infinity equals itself, which subtraction would turn into NaN. */
function compare(a: number, b: number): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

/** A solution with its place in the crowded-comparison order: the lower the front, then the lonelier, the better. */
export interface Placed<S> {
  readonly solution: S;
  readonly front: number;
  readonly distance: number;
}

/** The crowded-comparison operator (section III.B). */
export function isBetterPlaced(a: Placed<unknown>, b: Placed<unknown>): boolean {
  return a.front < b.front || (a.front === b.front && a.distance > b.distance);
}

/** The `count` best solutions, best first. */
export function survivors<S extends Solution>(solutions: readonly S[], count: number): Placed<S>[] {
  const placed: Placed<S>[] = [];
  for (const [front, members] of sortedFronts(solutions).entries()) {
    const distances = crowdingDistances(members.map((i) => solutions[i] as S));
    const ranked = members.map((i, at) => ({
      solution: solutions[i] as S,
      front,
      distance: distances[at] as number,
    }));
    placed.push(...ranked.sort((a, b) => compare(b.distance, a.distance)));
    if (placed.length >= count) break;
  }
  return placed.slice(0, count);
}
