import type { Fitted, SplitSample } from "./fit-state.js";

const factors = [0.5, 0.71, 0.87, 0.95, 1.05, 1.15, 1.4, 2] as const;
const slotFactors = [0.8, 0.95, 1.05, 1.25] as const;
/** In standard deviations of what is added to. */
const shifts = [-1, -0.3, -0.1, 0.1, 0.3, 1] as const;

/** The better on the fit part; ties go to `a`. */
function better(a: Fitted, b: Fitted): Fitted {
  return b.errors.fit < a.errors.fit ? b : a;
}

/** The factor on all logits that is best for the fit part; 1 and `from` itself when none is better. */
export function searchFactor(sample: SplitSample, from: Fitted): { found: Fitted; factor: number } {
  let found = from;
  let best = 1;
  for (const factor of factors) {
    const tried = scaled(sample, from, () => factor);
    if (better(found, tried) === found) continue;
    found = tried;
    best = factor;
  }
  return { found, factor: best };
}

/** Factors on the logits of single slots, one slot after the other, each from what the last one came to. */
export function searchSlotFactors(sample: SplitSample, from: Fitted): Fitted {
  let found = from;
  for (let slot = 0; slot < sample.block.slots; slot++) {
    const base = found;
    for (const factor of slotFactors) {
      found = better(
        found,
        scaled(sample, base, (other) => (other === slot ? factor : 1)),
      );
    }
  }
  return found;
}

/** Rows and biases times a factor, and with them the logits. */
function scaled(sample: SplitSample, { values, logits }: Fitted, factorOf: (slot: number) => number): Fitted {
  const { slots } = sample.block;
  return sample.measureLogits(
    {
      ...values,
      weight: values.weight.map((value, i) => value * factorOf(Math.floor(i / sample.hidden))),
      bias: values.bias?.map((value, slot) => value * factorOf(slot)),
    },
    logits.map((value, i) => value * factorOf(i % slots)),
  );
}

/** Adds to the bias or correction of one slot after the other; undefined where the router has none. */
export function searchShifts(
  sample: SplitSample,
  from: Fitted,
  kind: "bias" | "correction",
): Fitted | undefined {
  const { values } = from;
  if (!values[kind]) return undefined;
  const { slots } = sample.block;
  const unit = kind === "bias" ? deviation(from.logits) : deviation(values.correction as Float64Array) || 0.1;
  let found = from;
  for (let slot = 0; slot < slots; slot++) {
    const base = found;
    for (const shift of shifts) {
      const step = shift * unit;
      const own = (base.values[kind] as Float64Array).with(
        slot,
        (base.values[kind]?.[slot] as number) + step,
      );
      const logits =
        kind === "bias" ? base.logits.map((z, i) => (i % slots === slot ? z + step : z)) : base.logits;
      found = better(found, sample.measureLogits({ ...base.values, [kind]: own }, logits));
    }
  }
  return found;
}

function deviation(values: ArrayLike<number>): number {
  const all = Array.from(values);
  const mean = all.reduce((sum, value) => sum + value, 0) / all.length;
  return Math.sqrt(all.reduce((sum, value) => sum + (value - mean) ** 2, 0) / all.length);
}
