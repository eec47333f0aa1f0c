import {
  CoppiceError,
  type MoeModel,
  matchingStatistics,
  moeLayers,
  type PlanModel,
  type Statistics,
} from "@coppice/core";
import { type LogitSums, statisticVector, type TaskStatistic } from "./task-statistic.js";

/** What a profile says of the experts of one MoE layer. */
export interface ProfileLayer {
  /** All experts of the layer, the most important first. */
  readonly ranking: readonly number[];
  /** [E], mean softmax probability of every expert over the task's tokens; the sum is 1. */
  readonly probability: Float32Array;
}

/** Which experts a task needs, and how its prompts look to the first MoE layer. */
export interface Profile {
  /** Of the task; unique in a store. */
  readonly name: string;
  /** True for the profile that stands for all tasks: it is not searched for, but taken when no other is near. */
  readonly general: boolean;
  /** What ranked the experts, such as the name of a criterion. */
  readonly criterion: string;
  /** Tokens that the ranking was made from. */
  readonly tokens: number;
  /** The store's statistic over the task's prompts. */
  readonly vector: Float32Array;
  /** One per MoE layer, in layer order. */
  readonly layers: readonly ProfileLayer[];
}

/** Profiles of one model, all with the same statistic. Immutable. */
export interface ProfileStore {
  readonly model: PlanModel;
  readonly statistic: TaskStatistic;
  /** The model's MoE layers. */
  readonly layers: readonly { readonly layer: number; readonly experts: number }[];
  /** By name, at most one of them general. */
  readonly profiles: readonly Profile[];
}

/** A store without profiles. */
export function createStore(model: MoeModel, statistic: TaskStatistic = "logit-gram"): ProfileStore {
  return {
    model: { family: model.family, fingerprint: model.fingerprint },
    statistic,
    layers: moeLayers(model).map(({ index, feedForward }) => ({
      layer: index,
      experts: feedForward.experts.length,
    })),
    profiles: [],
  };
}

export interface NewProfile {
  readonly name: string;
  readonly model: MoeModel;
  /** Of the task's data, such as prompts with their answers. */
  readonly statistics: Statistics;
  /** One row per MoE layer, one score per expert: the larger, the more it matters. */
  readonly scores: readonly ArrayLike<number>[];
  /** What the scores are. */
  readonly criterion: string;
  /** Sums over the task's prompts alone in the first MoE layer (`PromptReader.sums`). @default those of `statistics` */
  readonly prompts?: LogitSums;
  /** @default false */
  readonly general?: boolean;
}

/**
 * The store with one profile more.
 * @throws COPPICE_USAGE when the store has one of that name, or a general one already; COPPICE_PROFILE_MODEL,
 * COPPICE_STATS_MODEL, COPPICE_STATS_MISSING
 */
export function addProfile(store: ProfileStore, profile: NewProfile): ProfileStore {
  const { name, model, scores, criterion, general = false } = profile;
  checkStoreModel(store, model);
  const statistics = matchingStatistics(profile);
  const layers = statistics.map(({ probability, tokens }, i): ProfileLayer => {
    const row = scores[i];
    if (row?.length !== probability.length || !Array.from(row).every(Number.isFinite)) {
      throw new CoppiceError(
        "COPPICE_USAGE",
        `the scores of profile "${name}" do not give each of the ${probability.length} experts of MoE layer ${i} a finite number`,
      );
    }
    return {
      ranking: Array.from(row, (_, expert) => expert).sort(
        (a, b) => (row[b] as number) - (row[a] as number) || a - b,
      ),
      probability: Float32Array.from(probability, (sum) => sum / tokens),
    };
  });
  const sums = profile.prompts ?? statistics[0];
  if (!sums) throw new CoppiceError("COPPICE_FAMILY_UNSUPPORTED", "the model has no MoE layers to profile");
  const vector = statisticVector(store.statistic, sums);
  const { tokens } = profile.statistics;
  return withProfiles(store, [...store.profiles, { name, general, criterion, tokens, vector, layers }]);
}

/** The store without one profile. @throws COPPICE_USAGE when it has none of that name */
export function removeProfile(store: ProfileStore, name: string): ProfileStore {
  const gone = findProfile(store, name);
  return { ...store, profiles: store.profiles.filter((profile) => profile !== gone) };
}

/**
 * The profiles of both stores.
 * @throws COPPICE_PROFILE_MODEL when they are of different models; COPPICE_USAGE when their statistics differ, or a name
 * is in both
 */
export function mergeStores(a: ProfileStore, b: ProfileStore): ProfileStore {
  checkStoreModel(a, b.model);
  if (a.statistic !== b.statistic) {
    throw new CoppiceError(
      "COPPICE_USAGE",
      `one store compares prompts by ${a.statistic}, the other by ${b.statistic}; expected the same`,
      { hint: "build one of them again" },
    );
  }
  return withProfiles(a, [...a.profiles, ...b.profiles]);
}

/** @throws COPPICE_USAGE when the store has no profile of that name */
export function findProfile(store: ProfileStore, name: string): Profile {
  const found = store.profiles.find((profile) => profile.name === name);
  if (found) return found;
  const names = store.profiles.map((profile) => profile.name).join(", ");
  throw new CoppiceError("COPPICE_USAGE", `there is no profile "${name}"; there are ${names || "none"}`);
}

/** @throws COPPICE_PROFILE_MODEL when the store is of another model */
export function checkStoreModel(
  store: Pick<ProfileStore, "model">,
  { fingerprint }: Pick<PlanModel, "fingerprint">,
): void {
  if (store.model.fingerprint === fingerprint) return;
  throw new CoppiceError(
    "COPPICE_PROFILE_MODEL",
    `the profiles are of a model with fingerprint "${store.model.fingerprint}"; this one has "${fingerprint}"`,
    { hint: "build profiles of this model" },
  );
}

function withProfiles(store: ProfileStore, profiles: readonly Profile[]): ProfileStore {
  const sorted = [...profiles].sort((a, b) => (a.name < b.name ? -1 : 1));
  const twice = sorted.find(({ name }, i) => sorted[i + 1]?.name === name);
  if (twice) {
    throw new CoppiceError("COPPICE_USAGE", `there is a profile "${twice.name}" already`, {
      hint: "remove it first, or choose another name",
    });
  }
  const general = sorted.filter((profile) => profile.general);
  if (general.length > 1) {
    const names = general.map(({ name }) => `"${name}"`).join(" and ");
    throw new CoppiceError("COPPICE_USAGE", `${names} are both general; a store has one general profile`);
  }
  return { ...store, profiles: sorted };
}
