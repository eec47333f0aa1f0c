import { CoppiceError } from "@coppice/core";
import type { BlockLoss } from "./block-loss.js";
import { ChangingSet } from "./changing-set.js";
import type { Turns } from "./turns.js";

/** One step between sets of experts that differ by one. */
export interface ChainStep {
  readonly expert: number;
  /** The loss of the smaller of the two sets, without `expert` (`BlockLoss.squared`). */
  readonly squared: number;
}

/** Whether a set may be gone through. */
export type Allows = (experts: readonly number[]) => boolean;

/** Greedy backward elimination, from `start` to no expert: every step drops the one without which the loss is least. */
export async function eliminateFrom(
  block: BlockLoss,
  start: readonly number[],
  turns: Turns,
  allows: Allows = () => true,
): Promise<ChainStep[]> {
  const set = new ChangingSet(block, start);
  const steps: ChainStep[] = [];
  while (set.experts.length > 0) {
    // Of equal ones the last goes, as ties between scores go to the lower expert.
    const step = await leastToggle(set, [...set.experts].reverse(), turns, allows);
    set.toggle(step.expert);
    steps.push(step);
  }
  return steps;
}

/** Greedy forward selection, from `start` to all experts: every step adds the one with which the loss is least. */
export async function addTo(
  block: BlockLoss,
  start: readonly number[],
  turns: Turns,
  allows: Allows = () => true,
): Promise<ChainStep[]> {
  const set = new ChangingSet(block, start);
  const steps: ChainStep[] = [];
  while (set.experts.length < block.experts) {
    const others = Array.from({ length: block.experts }, (_, expert) => expert).filter(
      (expert) => !set.experts.includes(expert),
    );
    const { expert } = await leastToggle(set, others, turns, allows);
    steps.push({ expert, squared: set.squared });
    set.toggle(expert);
  }
  return steps;
}

/** The expert that changes the set to the one with the least loss, and this loss; of equal ones the first. */
async function leastToggle(
  set: ChangingSet,
  experts: readonly number[],
  turns: Turns,
  allows: Allows,
): Promise<ChainStep> {
  let best: ChainStep | undefined;
  for (const expert of experts) {
    await turns.next();
    if (!allows(set.toggled(expert))) continue;
    const squared = set.squaredToggled(expert);
    if (!best || squared < best.squared) best = { expert, squared };
  }
  if (best) return best;
  throw new CoppiceError("COPPICE_INTERNAL", `no way leads on from the experts ${set.experts.join(" ")}`);
}
