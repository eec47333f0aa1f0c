import { CoppiceError } from "@coppice/core";

/** One way to treat a layer. */
export interface LayerOption {
  /** What is chosen: a number of experts, or a top-k. */
  readonly count: number;
  /** What choosing it costs in quality: smaller is better; costs of layers add up. */
  readonly cost: number;
  /** What it takes of the budget: a whole number of at least 0, in experts, bytes or experts per token. */
  readonly size: number;
}

/** The ways to treat one layer, at least one. */
export interface LayerChoices {
  readonly layer: number;
  readonly options: readonly LayerOption[];
}

export interface AllocateOptions {
  /** The sizes of all layers together may not be larger. */
  readonly budget: number;
  /** True when all layers must get the same count, as stock configs of most families need. @default false */
  readonly uniform?: boolean;
}

export interface Allocation {
  /** In the order of the choices. */
  readonly layers: readonly { readonly layer: number; readonly count: number }[];
  /** Sums over the layers. */
  readonly cost: number;
  readonly size: number;
}

/** Most cells, layers times budget, of the table; each takes two bytes. 60 layers of 256 experts have a million. */
const cellLimit = 2 ** 26;

/**
 * Chooses one option per layer so that the sum of costs is the least possible within the budget; of equal costs the
 * smallest size. Costs being separable, this is a multiple-choice knapsack, which dynamic programming over the
 * budget solves exactly in layers x budget x options steps; sizes are divided by their common divisor first, so that
 * bytes of equal experts count like experts.
 * @throws COPPICE_PLAN_KEEP when the least that the layers can do with exceeds the budget, or no count suits all of them
 */
export function allocate(choices: readonly LayerChoices[], options: AllocateOptions): Allocation {
  const { budget, uniform = false } = options;
  check(choices, budget);
  const chosen = uniform ? chooseOne(choices, budget) : chooseEach(choices, budget);
  if (!chosen) throw tooSmall(choices, budget, uniform);
  return {
    layers: chosen.map(({ count }, i) => ({ layer: (choices[i] as LayerChoices).layer, count })),
    cost: chosen.reduce((sum, { cost }) => sum + cost, 0),
    size: chosen.reduce((sum, { size }) => sum + size, 0),
  };
}

/** The best count that every layer has an option for. */
function chooseOne(choices: readonly LayerChoices[], budget: number): LayerOption[] | undefined {
  const [first, ...rest] = choices;
  let best: { options: LayerOption[]; cost: number; size: number } | undefined;
  for (const option of first?.options ?? []) {
    const same = rest.map((layer) => layer.options.find(({ count }) => count === option.count));
    const options = [option, ...same].filter((found) => found !== undefined);
    if (options.length < choices.length) continue;
    const cost = options.reduce((sum, { cost }) => sum + cost, 0);
    const size = options.reduce((sum, { size }) => sum + size, 0);
    if (size > budget || (best && (cost > best.cost || (cost === best.cost && size >= best.size)))) continue;
    best = { options, cost, size };
  }
  return best?.options;
}

/** The best option of every layer by itself. */
function chooseEach(choices: readonly LayerChoices[], budget: number): LayerOption[] | undefined {
  const unit =
    choices.flatMap(({ options }) => options.map(({ size }) => size)).reduce(commonDivisor, 0) || 1;
  const largest = choices.reduce((sum, { options }) => sum + Math.max(...options.map(({ size }) => size)), 0);
  const room = Math.floor(Math.min(budget, largest) / unit);
  if (choices.length * (room + 1) > cellLimit) {
    throw new CoppiceError(
      "COPPICE_USAGE",
      `the budget is ${room} times the unit of ${unit} that all sizes are multiples of, over ${choices.length} layers: ` +
        `more than the ${cellLimit} cells of a table`,
      { hint: "give sizes that are multiples of a larger unit" },
    );
  }
  // best[size]: least cost of the layers so far that take exactly that size.
  let best = new Float64Array(room + 1).fill(Number.POSITIVE_INFINITY);
  best[0] = 0;
  const picks = choices.map(({ options }) => {
    const next = new Float64Array(room + 1).fill(Number.POSITIVE_INFINITY);
    const pick = new Uint16Array(room + 1);
    options.forEach(({ cost, size }, option) => {
      const step = size / unit;
      for (let at = step; at <= room; at++) {
        const total = (best[at - step] as number) + cost;
        if (total < (next[at] as number)) {
          next[at] = total;
          pick[at] = option;
        }
      }
    });
    best = next;
    return pick;
  });
  let at = 0;
  for (let size = 1; size <= room; size++) if ((best[size] as number) < (best[at] as number)) at = size;
  if (best[at] === Number.POSITIVE_INFINITY) return undefined;
  const chosen: LayerOption[] = [];
  for (let i = choices.length - 1; i >= 0; i--) {
    const option = (choices[i] as LayerChoices).options[picks[i]?.[at] as number] as LayerOption;
    chosen.unshift(option);
    at -= option.size / unit;
  }
  return chosen;
}

function commonDivisor(a: number, b: number): number {
  return b === 0 ? a : commonDivisor(b, a % b);
}

/** Most options of a layer, of which a table cell holds the number. */
const optionLimit = 2 ** 16;

function check(choices: readonly LayerChoices[], budget: number): void {
  if (choices.length === 0) throw new CoppiceError("COPPICE_USAGE", "there are no layers to allocate to");
  if (!(budget >= 0)) throw new CoppiceError("COPPICE_USAGE", `the budget is ${budget}, expected at least 0`);
  for (const { layer, options } of choices) {
    if (options.length === 0 || options.length > optionLimit) {
      throw new CoppiceError(
        "COPPICE_PLAN_KEEP",
        `layer ${layer} has ${options.length} options, expected 1 to ${optionLimit}`,
      );
    }
    const bad = options.find(
      ({ cost, size }) => !Number.isFinite(cost) || !Number.isSafeInteger(size) || size < 0,
    );
    if (bad) {
      throw new CoppiceError(
        "COPPICE_USAGE",
        `${bad.count} in layer ${layer} costs ${bad.cost} and takes ${bad.size}; ` +
          "expected a finite cost and a whole size of at least 0",
      );
    }
  }
}

function tooSmall(choices: readonly LayerChoices[], budget: number, uniform: boolean): CoppiceError {
  const least = choices.reduce((sum, { options }) => sum + Math.min(...options.map(({ size }) => size)), 0);
  return new CoppiceError(
    "COPPICE_PLAN_KEEP",
    uniform && least <= budget
      ? `no count that all ${choices.length} layers can have fits the budget of ${budget}`
      : `the ${choices.length} layers take at least ${least}, the budget is ${budget}`,
    { hint: "raise the budget", details: { least, budget } },
  );
}
