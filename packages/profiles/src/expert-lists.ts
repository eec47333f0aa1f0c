import { CoppiceError, type Plan } from "@coppice/core";
import type { Profile, ProfileLayer } from "./profile-store.js";

/** Ranked experts per MoE layer, of one profile or of several together. */
export type ExpertLists = readonly ProfileLayer[];

/**
 * The lists of several profiles as one: first the first expert of every profile, then the second of every profile, and
 * so on, each expert where it comes first; probabilities are the means. So the first n experts are shared out evenly, and
 * the lists of a single profile stay as they are.
 * @throws COPPICE_USAGE without profiles
 */
export function uniteProfiles(profiles: readonly Pick<Profile, "layers">[]): ExpertLists {
  const [first] = profiles;
  if (!first)
    throw new CoppiceError("COPPICE_USAGE", "no profiles are given to unite, expected at least one");
  return first.layers.map(({ ranking, probability }, layer) => {
    const order = new Set<number>();
    for (let rank = 0; rank < ranking.length; rank++) {
      for (const profile of profiles) order.add(profile.layers[layer]?.ranking[rank] as number);
    }
    return {
      ranking: [...order],
      probability: probability.map((_, expert) => {
        const sum = profiles.reduce(
          (all, { layers }) => all + (layers[layer]?.probability[expert] as number),
          0,
        );
        return sum / profiles.length;
      }),
    };
  });
}

/** Scores that put the experts of one layer in the order of the list: [E], from E down to 1. */
export function rankScores(ranking: readonly number[]): Float64Array {
  const scores = new Float64Array(ranking.length);
  ranking.forEach((expert, rank) => {
    scores[expert] = ranking.length - rank;
  });
  return scores;
}

/** Probability mass of the experts of a layer that are not kept, on average over the task's tokens. */
export function droppedMass({ probability }: ProfileLayer, kept: readonly number[]): number {
  return Math.max(0, 1 - kept.reduce((sum, expert) => sum + (probability[expert] as number), 0));
}

/**
 * What a plan for all MoE layers is expected to drop of the router's probability on the data of the lists: the mean over
 * the layers.
 */
export function expectedDrop(lists: ExpertLists, { layers }: Pick<Plan, "layers">): number {
  const drops = lists.map((list, i) => droppedMass(list, layers[i]?.experts ?? list.ranking));
  return drops.reduce((sum, drop) => sum + drop, 0) / drops.length;
}
