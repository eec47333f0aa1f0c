import {
  CoppiceError,
  checkWholeNumber,
  createPlan,
  findExperts,
  type MoeModel,
  moeLayers,
  type Plan,
} from "@coppice/core";
import { type ExpertLists, rankScores, uniteProfiles } from "./expert-lists.js";
import type { Pick } from "./pick-profile.js";
import { type ProfileSize, profilePlan } from "./profile-plan.js";

export interface WideningOptions {
  /** Of the first plan. */
  readonly size: ProfileSize;
  /**
   * `experts`: by the next `step` experts of the lists in every layer. `profiles`: by the first experts of the next
   * nearest profile, as many as the first plan keeps. Both end with the whole model. @default "experts"
   */
  readonly by?: "experts" | "profiles";
  /** Experts per layer that are added at a time. @default an eighth of the layer, rounded up */
  readonly step?: number;
}

/**
 * The plan for a picked profile, and then ever wider ones for when it drops too much; the last keeps all experts.
 * @throws those of `profilePlan`
 */
export function* wideningPlans(
  model: MoeModel,
  pick: Pick,
  { size, by = "experts", step }: WideningOptions,
): Generator<Plan, void, undefined> {
  if (step !== undefined) checkWholeNumber("step", step);
  const lists = uniteProfiles(pick.profiles);
  const first = profilePlan(model, lists, size);
  let widest = first;
  yield first;
  if (by === "profiles") {
    const others = pick.nearest.map(({ profile }) => profile).filter((one) => !pick.profiles.includes(one));
    for (const profile of others) {
      const more = profile.layers.map(({ ranking }, i) => ranking.slice(0, first.layers[i]?.experts.length));
      const wider = widen(model, widest, lists, (i) => more[i] ?? []);
      if (expertCount(wider) === expertCount(widest)) continue;
      widest = wider;
      yield widest;
    }
    if (expertCount(widest) < allExperts(model))
      yield widen(model, widest, lists, (i) => lists[i]?.ranking ?? []);
    return;
  }
  while (expertCount(widest) < allExperts(model)) {
    const { layers } = widest;
    widest = widen(model, widest, lists, (i) => {
      const { ranking } = lists[i] as ExpertLists[number];
      const kept = new Set(layers[i]?.experts);
      return ranking.filter((expert) => !kept.has(expert)).slice(0, step ?? Math.ceil(ranking.length / 8));
    });
    yield widest;
  }
}

/** The experts of a plan and more of them, and as many beyond as the router's groups need. */
function widen(
  model: MoeModel,
  { layers }: Plan,
  lists: ExpertLists,
  more: (moeLayer: number) => readonly number[],
): Plan {
  return createPlan(
    model,
    moeLayers(model).map(({ index, feedForward }, i) => {
      const wanted = new Set([...(layers[i]?.experts ?? []), ...more(i)]);
      const scores = rankScores(lists[i]?.ranking ?? []);
      // What is there, or is to be added, goes before everything else.
      for (const expert of wanted) scores[expert] = (scores[expert] as number) + scores.length ** 2;
      for (let count = wanted.size; count <= scores.length; count++) {
        const experts = findExperts(feedForward, scores, count, index);
        if (experts && [...wanted].every((expert) => experts.includes(expert)))
          return { layer: index, experts };
      }
      throw new CoppiceError("COPPICE_INTERNAL", `layer ${index} cannot keep all of its experts`);
    }),
  );
}

function expertCount({ layers }: Plan): number {
  return layers.reduce((sum, { experts }) => sum + experts.length, 0);
}

function allExperts(model: MoeModel): number {
  return moeLayers(model).reduce((sum, { feedForward }) => sum + feedForward.experts.length, 0);
}
