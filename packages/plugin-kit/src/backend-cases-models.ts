import { moeLayers, type Plan, type Runner } from "@coppice/core";
import { checkCached, checkPieces } from "./backend-cases-run.js";
import {
  allLogits,
  type BackendSource,
  createBackend,
  randomSequences,
  withRunner,
} from "./backend-subject.js";
import { expectClose, expectCode } from "./compare.js";
import type { ConformanceCase } from "./conformance-case.js";
import type { MemoryModel } from "./memory-model.js";
import { randomModel } from "./random-model.js";
import type { RandomModelShape } from "./random-shape.js";
import { alignedPlan, everythingPlan, mergedPlan, prunedPlan, topOnePlan } from "./sample-plans.js";
import { type ModelFeature, sampleShapes } from "./sample-shapes.js";
import { sliceModel } from "./slice-model.js";
import { slowForward } from "./slow-model.js";

const tolerance = 1e-4;
const lengths = [8, 3, 10];
/** Tokens per sequence and run of a cache, for those lengths; in the second run two come to be equally long. */
const pieces = [
  [6, 1, 4],
  [1, 1, 3],
  [1, 1, 3],
];

/** Random models with every kind of part, against the formula: whole, pruned, merged, and with a cache. */
export function modelCases(source: BackendSource, unsupported: readonly ModelFeature[]): ConformanceCase[] {
  return (Object.keys(sampleShapes) as ModelFeature[]).map((feature) => {
    const shape: RandomModelShape = sampleShapes[feature];
    const name = `random model with ${feature}`;
    const loaded = randomModel(shape);
    if (unsupported.includes(feature)) {
      return {
        name: `${name}: is refused`,
        run: async () => {
          const backend = await createBackend(source);
          await expectCode(() => backend.load(loaded), ["COPPICE_BACKEND_UNSUPPORTED"], "load");
        },
      };
    }
    return {
      name: `${name}: gives what the formula and smaller models give`,
      run: () =>
        withRunner(source, loaded, async (runner) => {
          await checkPlans(source, runner, loaded);
          const sequences = randomSequences(loaded.model, lengths);
          if (dependsOnPieces(shape)) await checkPieces(runner, loaded, sequences, pieces);
          else
            for (const plan of [undefined, mergedPlan(loaded.model, 62)])
              await checkCached(runner, sequences, pieces, plan);
        }),
    };
  });
}

/** The runner's logits under several plans are those of the formula and those of the model that is really smaller. */
export async function checkPlans(source: BackendSource, runner: Runner, loaded: MemoryModel): Promise<void> {
  const { model } = loaded;
  const sequences = randomSequences(model, lengths);
  for (const [what, plan] of plansOf(loaded)) {
    const logits = await allLogits(runner, sequences, plan);
    const expected = sequences.flatMap((ids) => slowForward(loaded, [...ids], plan).logits.flat());
    expectClose(logits, expected, tolerance, `logits, ${what}`);
    if (!plan) continue;
    const smaller = await withRunner(source, sliceModel(loaded, plan), (other) =>
      allLogits(other, sequences),
    );
    expectClose(logits, smaller, tolerance, `logits against the smaller model, ${what}`);
  }
}

function plansOf(loaded: MemoryModel): [string, Plan | undefined][] {
  const { model } = loaded;
  const mixes = moeLayers(model).some(({ feedForward }) => feedForward.router.order === "sparsemixer");
  return [
    ["unchanged", undefined],
    ["pruned", prunedPlan(model, 61)],
    ["merged", mergedPlan(model, 62)],
    ["merged by unit", alignedPlan(model, 63)],
    ["merged by unit, with other router rows and skipped experts", everythingPlan(loaded, 64)],
    ...(mixes ? [] : [["one expert per token", topOnePlan(model)] satisfies [string, Plan]]),
  ];
}

/**
 * Whether a run depends on how many tokens come at once: rotary frequencies follow the length known in each run, while
 * earlier keys keep their rotation; and only tokens that come together are spared.
 */
function dependsOnPieces({ scaling, router }: RandomModelShape): boolean {
  return scaling?.kind === "dynamic" || scaling?.kind === "longrope" || router?.skip?.spare !== undefined;
}
