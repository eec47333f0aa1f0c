import type { Rng } from "@coppice/core";
import type { ExpertSpace, Genome } from "./expert-space.js";

/** Chance of a second parent. */
const crossoverProbability = 0.9;
/** Chance of a layer to be mixed from both parents' experts, not taken from one of them. */
const blendProbability = 0.5;
/** Chance of a mutation to change how many experts a token uses. */
const topKProbability = 0.1;
/** Chance of a mutated layer to keep another number of experts; else one is swapped. */
const countProbability = 0.7;

/** A genome whose number of experts per layer, and then whose experts, are uniformly random. */
export function randomGenome(space: ExpertSpace, rng: Rng): Genome {
  const topK = rng.pick(space.topKs);
  const shared = rng.pick(space.counts(topK, 0));
  const subsets = space.experts.map((experts, row) => {
    const count = space.options.uniform ? shared : rng.pick(space.counts(topK, row));
    return space.select(topK, row, noise(rng, experts), count);
  });
  return { topK, subsets };
}

/** A child of two parents, or of the first alone, with a mutation; what routers cannot work with is repaired. */
export function child(space: ExpertSpace, rng: Rng, [a, b]: readonly [Genome, Genome]): Genome {
  const crossed = rng.bernoulli(crossoverProbability) ? crossover(space, rng, a, b) : a;
  return mutate(space, rng, crossed);
}

function crossover(space: ExpertSpace, rng: Rng, a: Genome, b: Genome): Genome {
  const { topK } = rng.bernoulli(0.5) ? a : b;
  const sized = rng.bernoulli(0.5) ? a : b;
  const subsets = space.experts.map((experts, row) => {
    const own = rng.bernoulli(0.5) ? a : b;
    const count = (space.options.uniform ? sized : own).subsets[row]?.length as number;
    const [first, second] = [a, b].map(({ subsets }) => subsets[row] as readonly number[]);
    const blended = rng.bernoulli(blendProbability);
    const wanted = (expert: number) =>
      blended
        ? Number(first?.includes(expert)) + Number(second?.includes(expert))
        : 2 * Number(own.subsets[row]?.includes(expert));
    const scores = noise(rng, experts).map((value, expert) => value + wanted(expert));
    return space.select(topK, row, scores, nearest(space.counts(topK, row), count));
  });
  return { topK, subsets };
}

/** Changes about one layer: one expert more, less or another; or, at times, experts per token. */
export function mutate(space: ExpertSpace, rng: Rng, genome: Genome): Genome {
  const rows = space.experts.length;
  const movesTopK = space.topKs.length > 1 && rng.bernoulli(topKProbability);
  const at = space.topKs.indexOf(genome.topK);
  const topK = movesTopK ? neighbour(rng, space.topKs, at) : genome.topK;
  const chosen = rng.integer(rows);
  const resizes = rng.bernoulli(countProbability);
  const change = rng.bernoulli(0.5) ? 1 : -1;
  const subsets = genome.subsets.map((subset, row) => {
    const counts = space.counts(topK, row);
    let count = nearest(counts, subset.length);
    const isChosen = !movesTopK && (row === chosen || rng.bernoulli(0.5 / rows));
    const resized = resizes && !movesTopK && (isChosen || space.options.uniform);
    if (resized) count = counts[counts.indexOf(count) + change] ?? count;
    if (count === subset.length && !isChosen) return subset;
    const scores = noise(rng, space.experts[row] as number);
    for (const expert of subset) scores[expert] = (scores[expert] as number) + 2;
    if (isChosen && count === subset.length) {
      scores[rng.pick(subset)] = -1;
      const dropped = [...scores.keys()].filter((expert) => !subset.includes(expert));
      if (dropped.length > 0) scores[rng.pick(dropped)] = 2 * scores.length;
    }
    return space.select(topK, row, scores, count);
  });
  return { topK, subsets };
}

/** The value next to `values[at]` on either side. */
function neighbour(rng: Rng, values: readonly number[], at: number): number {
  return rng.pick([values[at - 1], values[at + 1]].filter((value) => value !== undefined));
}

/** The value nearest to `wanted`; of two the larger. */
function nearest(values: readonly number[], wanted: number): number {
  return values.reduce((a, b) => (Math.abs(b - wanted) <= Math.abs(a - wanted) ? b : a));
}

function noise(rng: Rng, length: number): Float64Array {
  return Float64Array.from({ length }, () => rng.uniform());
}
