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
    let best: ChainStep | undefined;
    for (const expert of set.experts) {
      await turns.next();
      if (!allows(set.toggled(expert))) continue;
      const squared = set.squaredToggled(expert);
      // Of equal ones the last goes, as ties between scores go to the lower expert.
      if (!best || squared <= best.squared) best = { expert, squared };
    }
    if (!best) throw new Error("no expert may be dropped");
    set.toggle(best.expert);
    steps.push(best);
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
  const left = new Set(Array.from({ length: block.experts }, (_, expert) => expert));
  for (const expert of start) left.delete(expert);
  while (left.size > 0) {
    let best: ChainStep | undefined;
    for (const expert of left) {
      await turns.next();
      if (!allows(set.toggled(expert))) continue;
      const squared = set.squaredToggled(expert);
      if (!best || squared < best.squared) best = { expert, squared };
    }
    if (!best) throw new Error("no expert may be added");
    steps.push({ expert: best.expert, squared: set.squared });
    set.toggle(best.expert);
    left.delete(best.expert);
  }
  return steps;
}
