import { CoppiceError } from "@coppice/core";
import type { Profile, ProfileStore } from "./profile-store.js";
import { type LogitSums, squaredDistance, statisticVector } from "./task-statistic.js";

/** A profile and how far it is from a prompt. */
export interface NearProfile {
  readonly profile: Profile;
  /** Euclidean distance of the two vectors of length 1: 0 to 2. */
  readonly distance: number;
}

export interface PickOptions {
  /** Below this margin the nearest profile alone is not trusted. @default 0.2 */
  readonly margin?: number;
  /**
   * What is taken then: the nearest `count` profiles together, or the store's general profile. @default "union"
   */
  readonly otherwise?: "union" | "general";
  /** Profiles of a union. @default 2 */
  readonly count?: number;
}

/** Which profiles serve a prompt. */
export interface Pick {
  /** `nearest`: the first of `nearest` alone; `union`: several of them; `general`: the general profile. */
  readonly kind: "nearest" | "union" | "general";
  /** In this order their experts are taken. */
  readonly profiles: readonly Profile[];
  /** 1 - d₁ / d₂ of the two smallest distances: 0 when the two are as near, 1 when the first is met exactly. */
  readonly margin: number;
  /** All profiles but the general one, the nearest first. */
  readonly nearest: readonly NearProfile[];
}

/** The margin below which two profiles are taken for equally near; how it was found is in the documentation. */
export const defaultMargin = 0.2;

/**
 * Profiles for a prompt by what the first MoE layer's router says of it (TAER of PreMoe, arXiv 2505.17639): the nearest,
 * or what `otherwise` says where the second is about as near.
 * @throws COPPICE_USAGE when the store has no profile to pick, or no general one where that is wanted
 */
export function pickProfile(store: ProfileStore, prompt: LogitSums, options: PickOptions = {}): Pick {
  const { margin: least = defaultMargin, otherwise = "union", count = 2 } = options;
  const vector = statisticVector(store.statistic, prompt);
  const nearest = store.profiles
    .filter(({ general }) => !general)
    .map((profile) => ({ profile, distance: Math.sqrt(squaredDistance(profile.vector, vector)) }))
    .sort((a, b) => a.distance - b.distance);
  const [first, second] = nearest;
  if (!first) throw new CoppiceError("COPPICE_USAGE", "the store has no profile of a task to pick");
  const margin = !second ? 1 : second.distance === 0 ? 0 : 1 - first.distance / second.distance;
  if (margin >= least) return { kind: "nearest", profiles: [first.profile], margin, nearest };
  if (otherwise === "union") {
    return {
      kind: "union",
      profiles: nearest.slice(0, count).map(({ profile }) => profile),
      margin,
      nearest,
    };
  }
  const general = store.profiles.find((profile) => profile.general);
  if (!general) {
    throw new CoppiceError("COPPICE_USAGE", "the store has no general profile to fall back to", {
      hint: "build one on data of all tasks, or fall back to the union of the nearest",
    });
  }
  return { kind: "general", profiles: [general], margin, nearest };
}
