import { canonicalPlan, type MoeModel, type Plan, planKey, type SearchStrategy } from "@coppice/core";

/** One of several goals of a search. */
export interface FrontObjective {
  /** Such as "fitness", "bytes", "activeParameters". */
  readonly name: string;
  readonly better: "higher" | "lower";
}

/** A plan that no other evaluated plan beats in every objective. */
export interface FrontPoint {
  readonly plan: Plan;
  /** One per objective, in their order. */
  readonly values: readonly number[];
}

/** The plans among which only the user can choose: each is better than every other in some objective. */
export interface SearchFront<P extends FrontPoint = FrontPoint> {
  readonly objectives: readonly FrontObjective[];
  readonly points: readonly P[];
}

/**
 * A strategy with several objectives. `front` gives the best of what it was told so far; like everything of a strategy
 * it must follow from options, context and results alone.
 */
export interface FrontStrategy extends SearchStrategy {
  front(): SearchFront;
}

/** A point as a result holds it: its plan is canonical. */
export interface RankedFrontPoint extends FrontPoint {
  readonly key: string;
}

/** The front of a strategy that has one. */
export function frontOf(
  strategy: SearchStrategy,
  model: MoeModel,
): SearchFront<RankedFrontPoint> | undefined {
  if (!("front" in strategy) || typeof strategy.front !== "function") return undefined;
  const { objectives, points } = (strategy as FrontStrategy).front();
  return {
    objectives,
    points: points.map(({ plan, values }) => ({
      key: planKey(plan, model),
      plan: canonicalPlan(plan, model),
      values,
    })),
  };
}
