import type { MoeModel } from "@coppice/core";
import { defaultGrids, type FitChoice, solvingCost } from "@coppice/reconstruct";

/** Of solutions of a reconstruction that nobody asked for: one to two hours. */
const mostMultiplications = 5e12;

/**
 * Grids of choices that a fit tries unless it is told to: all, the first alone, or none, so that solving takes no more than some hours.
 * @param slots experts that every layer keeps
 */
export function fitGrids(model: MoeModel, slots: number): readonly (readonly FitChoice[])[] {
  const first = (count: number) => defaultGrids.slice(0, count);
  const isShort = (count: number) =>
    solvingCost(model, { slots, grids: first(count) }) <= mostMultiplications;
  return first([defaultGrids.length, 1].find(isShort) ?? 0);
}
