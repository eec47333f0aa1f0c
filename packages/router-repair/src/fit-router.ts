import type { Fitted, PartErrors, SplitSample } from "./fit-state.js";
import { searchFactor, searchShifts, searchSlotFactors } from "./line-search.js";
import { RidgeFit } from "./ridge-fit.js";
import type { RouterValues } from "./router-values.js";

/** One change of a router that was accepted. */
export interface RepairStep {
  readonly kind: "ridge" | "temperature" | "expert-temperature" | "bias" | "correction";
  /** The penalty that the held-out part chose; of `ridge`. */
  readonly penalty?: number;
  /** Share of the fitted change that was made; of `ridge`. */
  readonly share?: number;
  /** Factor on all logits; of `temperature`. */
  readonly factor?: number;
  /** Errors after it. */
  readonly errors: PartErrors;
}

export interface RouterFit {
  readonly best: Fitted;
  readonly steps: readonly RepairStep[];
}

/** Rounds of fits, each of which aims anew from where the last one came; few are accepted after the third. */
const rounds = 4;
/** Below it the error is that of float32. */
const negligible = 1e-10;
/** What a step has to take off the held-out error, relatively, to be no accident. */
export const leastGain = 1e-3;

/**
 * Fits the router of one layer: alternates line searches of a factor on all logits, of one per slot, of bias and of
 * correction with ridge fits of the rows, whose penalty is on the change of the rows. What is tried is chosen by the fit
 * part where it has one number per slot or fewer, and by the held-out part where it has a row per slot; every step is
 * accepted only if the held-out error falls.
 */
export function fitRouter(sample: SplitSample, start: RouterValues, stop: () => void): RouterFit {
  let best = sample.measure(start);
  const steps: RepairStep[] = [];
  const accept = (found: Fitted | undefined, step: Omit<RepairStep, "errors">): boolean => {
    if (!found || !(found.errors.heldOut < best.errors.heldOut * (1 - leastGain))) return false;
    best = found;
    steps.push({ ...step, errors: found.errors });
    return true;
  };
  const ridge = new RidgeFit(sample);
  for (let round = 0; round < rounds && best.errors.heldOut > negligible; round++) {
    stop();
    const temperature = searchFactor(sample, best);
    let accepted = accept(temperature.found, { kind: "temperature", factor: temperature.factor });
    accepted = accept(searchSlotFactors(sample, best), { kind: "expert-temperature" }) || accepted;
    for (const kind of ["bias", "correction"] as const) {
      accepted = accept(searchShifts(sample, best, kind), { kind }) || accepted;
    }
    stop();
    const { found, penalty, share } = ridge.fit(best);
    if (!(accept(found, { kind: "ridge", penalty, share }) || accepted)) break;
  }
  return { best, steps };
}
