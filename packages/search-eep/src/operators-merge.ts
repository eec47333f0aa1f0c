import type { Rng } from "@coppice/core";
import { type Genome, type GroupGenome, type Matrix, roundCoefficient } from "./genome.js";

/**
 * `genome` after a normal step of standard deviation `sigma` in 1 to `groups` of its matrices: those of the experts
 * (W_EM), and those of the router (W_RM) too when it is free. Each coefficient there moves with `probability`.
 */
export function stepCoefficients(
  rng: Rng,
  genome: Genome,
  options: { groups: number; probability: number; sigma: number; router: boolean },
): Genome {
  const { groups, probability, sigma, router } = options;
  const places = genome.flatMap((_, group) =>
    (router ? (["weights", "router"] as const) : (["weights"] as const)).map((matrix) => ({ group, matrix })),
  );
  const result = genome.map((group): GroupGenome => ({ ...group }));
  const most = Math.min(groups, places.length);
  for (const i of rng.sample(places.length, 1 + rng.integer(most))) {
    const { group, matrix } = places[i] as (typeof places)[number];
    const target = result[group] as GroupGenome;
    const rows: Matrix = target[matrix].map((row) =>
      row.map((value) =>
        rng.bernoulli(probability) ? roundCoefficient(value + sigma * rng.normal()) : value,
      ),
    );
    result[group] = { ...target, [matrix]: rows };
  }
  return result;
}
