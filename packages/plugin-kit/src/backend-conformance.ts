import { attentionCases } from "./backend-cases-attention.js";
import { drawCases } from "./backend-cases-draw.js";
import { goldenCases } from "./backend-cases-golden.js";
import { lifecycleCases } from "./backend-cases-lifecycle.js";
import { loadCases } from "./backend-cases-load.js";
import { maskerCases } from "./backend-cases-masker.js";
import { modelCases } from "./backend-cases-models.js";
import { paceCases } from "./backend-cases-pace.js";
import { planCases } from "./backend-cases-plan.js";
import { runCases } from "./backend-cases-run.js";
import { tapCases } from "./backend-cases-tap.js";
import type { BackendSource } from "./backend-subject.js";
import type { ConformanceCase } from "./conformance-case.js";
import type { FixtureSource } from "./fixture.js";
import { randomModel } from "./random-model.js";
import { type ModelFeature, sampleShapes } from "./sample-shapes.js";

export interface BackendConformanceOptions {
  /** Checkpoints with reference outputs; `fixtures` of `@coppice/plugin-kit/node` are those that ship here. */
  readonly fixtures: readonly FixtureSource[];
  /** Features that the backend says it cannot run; it must refuse them with COPPICE_BACKEND_UNSUPPORTED. */
  readonly unsupported?: readonly ModelFeature[];
}

/** Models that go through the cases of plans, runs and taps: different routers, attention and caches. */
const suiteModels: readonly ModelFeature[] = [
  "many-experts",
  "shared-expert-gate",
  "low-rank-queries",
  "attention-sinks",
  "scaled-inputs",
];

/** Models whose merged experts are computed in other ways: rounded, with biases, in three layers, none at all. */
const paceModels: readonly ModelFeature[] = [
  "many-experts",
  "shared-expert-gate",
  "bfloat16",
  "dense-layers",
];

/** Models that are loaded whole and in part: biases, three layers, a dense layer, tied and biased heads. */
const loadModels: readonly ModelFeature[] = [
  "attention-sinks",
  "low-rank-queries",
  "query-key-norm",
  "shared-expert-gate",
  "sparsemixer",
  "tied-head",
  "ungated-experts",
];

/**
 * What every backend must do, as cases for any test runner. Each case loads its own runner and disposes it.
 * Logits must be within 2e-4 of the reference implementation's and within 1e-4 of a slow float64 formula.
 *
 * @example
 * for (const { name, run } of backendConformance(myBackend, { fixtures })) test(name, run);
 */
export function backendConformance(
  source: BackendSource,
  options: BackendConformanceOptions,
): ConformanceCase[] {
  const { fixtures, unsupported = [] } = options;
  const casesOf = (features: readonly ModelFeature[], ...makers: (typeof planCases)[]) =>
    features
      .filter((feature) => !unsupported.includes(feature))
      .flatMap((feature) => {
        const loaded = randomModel(sampleShapes[feature]);
        return makers.flatMap((make) => make(source, feature, loaded));
      });
  return [
    ...fixtures.flatMap((fixture) => goldenCases(source, fixture)),
    ...modelCases(source, unsupported),
    ...casesOf(suiteModels, planCases, runCases, tapCases),
    ...casesOf(paceModels, paceCases),
    ...casesOf(loadModels, loadCases),
    ...attentionCases(source, unsupported),
    ...maskerCases(source),
    ...drawCases(source),
    ...lifecycleCases(source),
  ];
}
