import type { Fitted, PartErrors, SplitSample } from "./fit-state.js";
import { searchFactor, searchShifts, searchSlotFactors } from "./line-search.js";
import { RidgeFit } from "./ridge-fit.js";
import type { RouterValues } from "./router-values.js";

/** One change of a router that was accepted. */
export interface RepairStep {
  readonly kind: "ridge" | "temperature" | "expert-temperature" | "bias" | "correction";
  /** The penalty on the change of rows, in mean squares of the inputs; of `ridge`. */
  readonly penalty?: number;
  /** Factor on all logits; of `temperature`. */
  readonly factor?: number;
  /** Errors after it. */
  readonly errors: PartErrors;
}

export interface RouterFit {
  readonly best: Fitted;
  readonly steps: readonly RepairStep[];
}

export interface FitOptions {
  /** Share of the best ridge fit's gain on the held-out part that may be given up for rows that change less. */
  readonly caution: number;
  /** Most rounds; each aims anew from where the last one came. */
  readonly rounds: number;
  /** Throws when the caller wants no more. */
  stop(): void;
}

/** Below it the error is that of float32. */
const negligible = 1e-10;
/** What a step has to take off the held-out error, relatively, to be no accident. */
export const leastGain = 1e-3;

/**
 * Fits the router of one layer: alternates line searches of a factor on all logits, of one per slot, of bias and of
 * correction with ridge fits of the rows, whose penalty is on the change of the rows. Line searches go by the fit part, the
 * penalty of a ridge fit by the held-out part; every step is accepted only if the held-out error falls.
 */
export function fitRouter(
  sample: SplitSample,
  start: RouterValues,
  { caution, rounds, stop }: FitOptions,
): RouterFit {
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
    const step = ridge.fit(best, caution);
    accepted = (step && accept(step.found, { kind: "ridge", penalty: step.penalty })) || accepted;
    if (!accepted) break;
  }
  return { best, steps };
}
