import { goldenCases } from "./backend-cases-golden.js";
import { lifecycleCases } from "./backend-cases-lifecycle.js";
import { modelCases } from "./backend-cases-models.js";
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
  return [
    ...fixtures.flatMap((fixture) => goldenCases(source, fixture)),
    ...modelCases(source, unsupported),
    ...suiteModels
      .filter((feature) => !unsupported.includes(feature))
      .flatMap((feature) => {
        const loaded = randomModel(sampleShapes[feature]);
        return [
          ...planCases(source, feature, loaded),
          ...runCases(source, feature, loaded),
          ...tapCases(source, feature, loaded),
        ];
      }),
    ...lifecycleCases(source),
  ];
}
