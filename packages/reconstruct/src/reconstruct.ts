import {
  CoppiceError,
  createPlan,
  type LayerPlan,
  type MoeLayer,
  type MoeModel,
  moeLayers,
  type Plan,
  packBfloat16,
  type RunEmitter,
  type Runner,
  startProgress,
  throwIfAborted,
} from "@coppice/core";
import { FitStream, type FitText } from "./fit-stream.js";
import type { FitTarget } from "./normal-equations.js";
import { type MatrixProducts, plainProducts } from "./products.js";

/** One way to fit a layer; `null`: leave it as it is. */
export type FitChoice = {
  /**
   * What the experts of a layer are fitted to put out on what the layer reads under the plan: `layer`, what the whole layer
   * puts out on the same; `stream`, what makes the residual stream behind the layer that of the whole model, so that a
   * layer also makes up for those before it.
   */
  readonly target: FitTarget;
  /** Penalty on the change, as a share of the mean square of the fitted hidden units. The larger, the less is changed. */
  readonly ridge: number;
} | null;

/** Texts to fit to, and a judge that has not seen them. */
export interface Fold {
  readonly texts: readonly FitText[];
  /** How well the model does under each plan on other samples than `texts`; larger is better. */
  readonly score: (plans: readonly Plan[]) => Promise<readonly number[]>;
}

export interface ReconstructOptions {
  /** The whole model, loaded. */
  readonly runner: Runner;
  /** Pruned or merged; what it says of `down` is replaced. */
  readonly plan: Plan;
  /** Each layer takes the choice that is best in the sum of the folds' scores. At least one. */
  readonly folds: readonly Fold[];
  /** What the result is fitted to. Default: the texts of the one fold. */
  readonly texts?: readonly FitText[];
  /** Default `defaultGrids`. At least one, none of them empty. */
  readonly grids?: readonly (readonly FitChoice[])[];
  readonly products?: MatrixProducts;
  /** Gets `progress` in layers, those of every grid. */
  readonly emitter?: RunEmitter;
  readonly signal?: AbortSignal;
}

export interface LayerReconstruction {
  readonly layer: number;
  readonly choice: FitChoice;
  /** Mean over the folds, with this layer and those before it fitted. */
  readonly score: number;
}

export interface Reconstruction {
  readonly plan: Plan;
  /** One per fold: what its texts alone gave under the same choices. Its judge has seen none of them. */
  readonly foldPlans: readonly Plan[];
  /** Mean score of the folds before anything was fitted. */
  readonly before: number;
  readonly layers: readonly LayerReconstruction[];
  /** Token x layer evaluations of the texts; those of the scores are their judges' to count. */
  readonly tokenLayers: number;
}

/**
 * Choices that layers may take. The second grid fits more closely, which is better as a rule where the folds' judges have
 * seen nothing of the texts; but a layer cannot know what its choice leaves to those behind it, and where texts are few its
 * close fits end worse than those of the first.
 */
export const defaultGrids: readonly (readonly FitChoice[])[] = [
  [null, ...toStream(0.1, 1), ...toLayer(0.3, 3)],
  [null, ...toStream(0.01, 0.03, 0.1, 1), ...toLayer(0.03, 0.3, 3)],
];

function toStream(...ridges: number[]): FitChoice[] {
  return ridges.map((ridge) => ({ target: "stream", ridge }));
}

function toLayer(...ridges: number[]): FitChoice[] {
  return ridges.map((ridge) => ({ target: "layer", ridge }));
}

/**
 * Refits the down projections of the experts that a plan keeps, layer by layer and in closed form, so that they put out what
 * the whole layer did: ridge regression of the change on the hidden units of the kept experts, times their gate weights
 * (`NormalEquations`). Layers follow one another, each on the inputs that the plan and the fits before it give. How strongly
 * a layer is fitted, to what, and whether at all, is what serves samples best that were not fitted to. Every grid of choices
 * goes through all layers by itself, and the one whose last layer scores best gives the result.
 *
 * Least-squares reconstruction of a pruned layer is that of SparseGPT (arXiv 2301.00774, eq. 4) and of channel pruning (He et
 * al., arXiv 1707.06168, eq. 5) before it, for the sum of routed experts; the choice by folds is this package's own.
 * @throws COPPICE_PLAN_INVALID for a plan with router maps, COPPICE_USAGE without a fold or text, COPPICE_ABORTED; what
 * `score` and the runner throw
 */
export async function reconstruct(options: ReconstructOptions): Promise<Reconstruction> {
  const { runner, grids = defaultGrids, emitter } = options;
  const { model } = runner;
  checkOptions(options);
  const plan = createPlan(
    model,
    options.plan.layers.map(({ down: _, ...layer }) => layer),
  );
  const changed = moeLayers(model).filter(({ index }) => plan.layers.some(({ layer }) => layer === index));
  const tell = startProgress(emitter, "reconstructing", "layers");
  let [done, tokenLayers] = [0, 0];
  let best: Reconstruction | undefined;
  for (const choices of grids) {
    const onLayer = () => tell(++done, grids.length * changed.length);
    const found = await withGrid(options, plan, changed, choices, onLayer);
    tokenLayers += found.tokenLayers;
    if (!best || lastScore(found) > lastScore(best)) best = found;
  }
  return { ...(best as Reconstruction), tokenLayers };
}

function lastScore({ before, layers }: Reconstruction): number {
  return layers.at(-1)?.score ?? before;
}

async function withGrid(
  options: ReconstructOptions,
  plan: Plan,
  changed: readonly MoeLayer[],
  choices: readonly FitChoice[],
  onLayer: () => void,
): Promise<Reconstruction> {
  const { runner, folds, signal, products = plainProducts } = options;
  const { model } = runner;
  const fits = folds.map(({ texts, score }) => ({
    stream: new FitStream(runner, texts),
    score,
    plan,
    value: 0,
  }));
  const [only] = fits;
  const last =
    options.texts || !only || fits.length > 1
      ? { stream: new FitStream(runner, options.texts ?? folds.flatMap(({ texts }) => texts)), plan }
      : only;
  for (const fit of fits) [fit.value = Number.NaN] = await fit.score([plan]);
  const before = mean(fits.map(({ value }) => value));
  const layers: LayerReconstruction[] = [];
  for (const layer of changed) {
    throwIfAborted(signal, `reconstructing layer ${layer.index}`);
    const tried: Tried[][] = [];
    for (const fit of fits) {
      await fit.stream.advance(layer.index, fit.plan, signal);
      const equations = await fit.stream.collect(layer, fit.plan, products, signal);
      const plans = choices.map((choice) =>
        choice ? withDown(model, fit.plan, layer, equations.solve(choice.target, choice.ridge)) : fit.plan,
      );
      // Where nothing changes, the score is known.
      const values = [...(await fit.score(plans.filter((next) => next !== fit.plan)))];
      tried.push(
        plans.map((next) => ({
          plan: next,
          value: next === fit.plan ? fit.value : (values.shift() ?? Number.NaN),
        })),
      );
    }
    const scores = choices.map((_, i) => mean(tried.map((own) => (own[i] as Tried).value)));
    // A comparison with NaN is false, so that such a score never wins.
    const best = scores.reduce((best, score, i) => (score > (scores[best] as number) ? i : best), 0);
    fits.forEach((fit, f) => {
      const { plan, value } = (tried[f] as Tried[])[best] as Tried;
      [fit.plan, fit.value] = [plan, value];
    });
    const choice = choices[best] ?? null;
    layers.push({ layer: layer.index, choice, score: scores[best] as number });
    if (last !== only && choice) {
      await last.stream.advance(layer.index, last.plan, signal);
      const equations = await last.stream.collect(layer, last.plan, products, signal);
      last.plan = withDown(model, last.plan, layer, equations.solve(choice.target, choice.ridge));
    }
    onLayer();
  }
  const streams = new Set([...fits.map(({ stream }) => stream), last.stream]);
  const tokenLayers = [...streams].reduce((sum, stream) => sum + stream.tokenLayers, 0);
  return { plan: last.plan, foldPlans: fits.map(({ plan }) => plan), before, layers, tokenLayers };
}

interface Tried {
  readonly plan: Plan;
  readonly value: number;
}

function withDown(model: MoeModel, plan: Plan, { index }: MoeLayer, deltas: Float32Array): Plan {
  return createPlan(
    model,
    plan.layers.map(
      (layer): LayerPlan => (layer.layer === index ? { ...layer, down: packBfloat16(deltas) } : layer),
    ),
  );
}

function checkOptions({ plan, folds, grids = defaultGrids }: ReconstructOptions): void {
  const mapped = plan.layers.find(({ routerMap }) => routerMap);
  if (mapped) {
    throw new CoppiceError(
      "COPPICE_PLAN_INVALID",
      `layer ${mapped.layer} of the plan has a router map, under which no stock checkpoint could hold the result`,
      { hint: "search with router: stock, or project the plan to stock routers first" },
    );
  }
  if (folds.length === 0 || folds.some(({ texts }) => texts.length === 0)) {
    throw new CoppiceError(
      "COPPICE_USAGE",
      `${folds.length} folds are given; every one needs texts to fit to`,
    );
  }
  const bad = grids
    .flat()
    .find((choice) => choice && !(choice.ridge > 0 && choice.ridge < Number.POSITIVE_INFINITY));
  if (bad || grids.length === 0 || grids.some((choices) => choices.length === 0)) {
    throw new CoppiceError(
      "COPPICE_USAGE",
      bad
        ? `the ridge is ${bad.ridge}, expected a number above 0`
        : "there is no choice of how to fit a layer",
    );
  }
}

function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}
