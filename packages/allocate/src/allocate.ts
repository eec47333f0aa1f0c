import { CoppiceError } from "@coppice/core";
import { allocateUnits } from "./allocate-units.js";

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

/**
 * Chooses one option per layer so that the sum of costs is the least possible within the budget; of equal costs the
 * smallest size. Costs being separable, this is a multiple-choice knapsack, which `allocateUnits` solves exactly.
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
  const least = choices.reduce((sum, { options }) => sum + Math.min(...options.map(({ size }) => size)), 0);
  if (least > budget) return undefined;
  const units = choices.map(({ options }) =>
    options.map((option) => ({ bytes: option.size, loss: option.cost, option })),
  );
  const { groups, optimal } = allocateUnits([{ name: "the layers", units }], { budget });
  if (!optimal) {
    throw new CoppiceError(
      "COPPICE_USAGE",
      `the ${choices.length} layers have too many choices of nearly equal cost to find the best within ${budget}`,
      { hint: "give fewer options, or sizes that are multiples of a larger unit" },
    );
  }
  return groups[0]?.map(({ option }) => option);
}

/** Most options of a layer: far more than any router has experts. */
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
