import * as v from "valibot";

const probability = v.pipe(v.number(), v.minValue(0), v.maxValue(1));
const count = v.pipe(v.number(), v.integer(), v.minValue(1), v.maxValue(1_000_000));
const positive = v.pipe(v.number(), v.minValue(0), v.finite());

/** Rates of the presets `paper` and `released`; every one can be overridden. */
export const publishedRates = v.partial(
  v.strictObject({
    /** Initial plans. */
    init: count,
    /** Children of one iteration, bred from the same population. */
    children: count,
    /** Size of the set of candidate parents, best first. Absent: the windows below decide. */
    parents: count,
    /** Mutation picks its parent within so many accuracy points of the best. */
    mutationWindow: positive,
    /** Crossover picks its parents within so many accuracy points of the best ... */
    crossoverWindow: positive,
    /** ... or among so many of the best, whichever are more. */
    crossoverLeast: count,
    /** Chance of a matrix of a group to change at all. */
    groupProbability: v.pipe(v.number(), v.minValue(0.001), v.maxValue(1)),
    /** Chance of a row to be re-pointed in the prune phase. */
    rowProbability: probability,
    pruneCrossover: probability,
    mergeCrossover: probability,
    /** Chance of crossover to take a row from the first parent. */
    fromFirst: probability,
    /** Chance of a coefficient to move in the merge phase. */
    entryProbability: probability,
    /** Standard deviation of that move. */
    sigma: positive,
    /** Chance of a child to have its W_EM rows divided by their sums. */
    normalizeProbability: probability,
  }),
);

export interface PublishedRates {
  init: number;
  children: number;
  parents?: number | undefined;
  mutationWindow: number;
  crossoverWindow: number;
  crossoverLeast: number;
  groupProbability: number;
  rowProbability: number;
  pruneCrossover: number;
  mergeCrossover: number;
  fromFirst: number;
  entryProbability: number;
  sigma: number;
  normalizeProbability: number;
}

/** A published setting: its rates, and the individuals of its two phases. */
export interface PublishedPreset {
  readonly rates: PublishedRates;
  readonly prune: number;
  readonly merge: number;
  readonly groups: "layer" | number;
}

/**
 * The released code, imagination-research/EEP at 39df572, configs/search/search.yml and
 * opencompass/tasks/search.py, search_utils.py.
 */
const released: PublishedPreset = {
  rates: {
    init: 31, // stops once more than max_init_num = 30 exist
    children: 1, // steady state
    mutationWindow: 3, // mutate.parents_threshold
    crossoverWindow: 1, // crossover.parents_threshold
    crossoverLeast: 6, // crossover.parents_rank
    groupProbability: 0.25, // weight_change_prob, transfer_change_prob
    rowProbability: 0.15, // discrete_mutate.prob
    pruneCrossover: 0, // only once the population exceeds discrete_iter
    mergeCrossover: 0.3, // crossover.prob
    fromFirst: 0.6, // crossover.from_front_prob
    entryProbability: 0.25, // mutate.prob
    sigma: 0.065, // mutate.scale
    normalizeProbability: 0.1, // norm_prob
  },
  prune: 101, // until the population exceeds discrete_iter = 100
  merge: 300, // until it exceeds total_iter = 400
  groups: "layer", // what its set_all_weights_group means to do
};

/**
 * The paper, section 4.1 and appendix: 40 iterations of pruning, 160 of merging, several children of each from a
 * capped set of the best, mutation after crossover. It does not say how many children and parents: 2 children make
 * as many individuals as the released setting has; 10 parents and 31 initial plans are ours. Mutation rates are
 * those of the released code.
 */
const paper: PublishedPreset = {
  rates: { ...released.rates, children: 2, parents: 10, pruneCrossover: 1, mergeCrossover: 1 },
  prune: 31 + 40 * 2,
  merge: 160 * 2,
  groups: 4, // layers 0-7, 8-15, 16-23, 24-31 of Mixtral, for most of its tasks
};

export const publishedPresets = { paper, released };

/** Rates of the default preset; every one can be overridden. */
export const defaultRates = v.partial(
  v.strictObject({
    /** Part of the prune phase that backward elimination may use; 0 for none. */
    eliminationShare: probability,
    /** Plans before the first bred one, as a share of the prune phase: seeds, mixtures, random ones. */
    initShare: probability,
    /** Best plans that can become parents. */
    population: count,
    /** Children that are evaluated between two fits of the surrogate. */
    children: count,
    /** Children that are drawn for them; the surrogate picks. 1 per child switches it off. */
    pool: count,
    /** Chance of a child to be picked by chance instead. */
    explore: probability,
    /** Chance of a child to have two parents. */
    pruneCrossover: probability,
    /** Chance of a mutation to reach a second group. */
    moreGroups: probability,
    /** Chance of a second swap in a group. */
    moreSwaps: probability,
    /** Bred plans without a better one that end the prune phase. */
    pruneStale: count,
    /** Children of the merge phase per parent. */
    mergeChildren: count,
    /** Groups that a merge step changes: 1 to this many. */
    stepGroups: count,
    /** Chance of a coefficient of those groups to move. */
    entryProbability: probability,
    /** First standard deviation of such a move; adapts. */
    sigma: positive,
    /** Standard errors of the paired difference by which a merge step must be better to be taken. */
    leastGain: positive,
  }),
);

export interface DefaultRates {
  eliminationShare: number;
  initShare: number;
  population: number;
  children: number;
  pool: number;
  explore: number;
  pruneCrossover: number;
  moreGroups: number;
  moreSwaps: number;
  pruneStale: number;
  mergeChildren: number;
  stepGroups: number;
  entryProbability: number;
  sigma: number;
  leastGain: number;
}

/**
 * Chosen on the first 200 search samples of four tasks of the demo model, judged on 100 other samples of the same
 * files; docs/plugins/eep.md says what was compared.
 */
export const defaultPreset: DefaultRates = {
  eliminationShare: 0.6,
  initShare: 0.08,
  population: 16,
  children: 4,
  pool: 100,
  explore: 0.25,
  pruneCrossover: 0.3,
  moreGroups: 0.3,
  moreSwaps: 0.2,
  pruneStale: 100,
  mergeChildren: 2,
  stepGroups: 2,
  entryProbability: 0.5,
  sigma: 0.08,
  leastGain: 0,
};

/** Share of the budget that the default preset prunes with when merging follows. */
export const defaultPruneShare = 3 / 7;
