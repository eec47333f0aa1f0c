import { goldenCases } from "./backend-cases-golden.js";
import { lifecycleCases } from "./backend-cases-lifecycle.js";
import { type ModelFeature, modelCases } from "./backend-cases-models.js";
import { fixtureInMemory, planCases } from "./backend-cases-plan.js";
import { runCases } from "./backend-cases-run.js";
import { tapCases } from "./backend-cases-tap.js";
import type { BackendSource } from "./backend-subject.js";
import type { ConformanceCase } from "./conformance-case.js";
import type { FixtureSource } from "./fixture.js";

export interface BackendConformanceOptions {
  /** Checkpoints with reference outputs; `fixtures` of `@coppice/plugin-kit/node` are those that ship here. */
  readonly fixtures: readonly FixtureSource[];
  /** Features that the backend says it cannot run; it must refuse them with COPPICE_BACKEND_UNSUPPORTED. */
  readonly unsupported?: readonly ModelFeature[];
}

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
  return [
    ...options.fixtures.flatMap((fixture) => {
      const load = fixtureInMemory(fixture);
      return [
        ...goldenCases(source, fixture),
        ...planCases(source, fixture.name, load),
        ...runCases(source, fixture.name, load),
        ...tapCases(source, fixture.name, load),
      ];
    }),
    ...modelCases(source, options.unsupported ?? []),
    ...lifecycleCases(source),
  ];
}
