import { checkCached } from "./backend-cases-run.js";
import {
  allLogits,
  type BackendSource,
  createBackend,
  randomSequences,
  withRunner,
} from "./backend-subject.js";
import { expectClose, expectCode } from "./compare.js";
import type { ConformanceCase } from "./conformance-case.js";
import { randomModel } from "./random-model.js";
import type { RandomModelShape } from "./random-shape.js";
import { mergedPlan, prunedPlan } from "./sample-plans.js";
import { slowForward } from "./slow-model.js";

/** One feature of the model description at a time. */
const shapes = {
  "sliding-window": { seed: 51, slidingWindow: 4 },
  "query-key-norm": { seed: 52, qkNorm: true },
  biases: { seed: 53, bias: true },
  "dense-layers": { seed: 54, layers: 3, denseLayers: [1] },
  "tied-head": { seed: 55, tied: true },
  "unnormalised-gates": { seed: 56, normalize: false },
  "partial-rotary": { seed: 57, headDim: 12, rotaryDimensions: 4 },
  "one-head-per-group": { seed: 58, heads: 3, kvHeads: 3, hidden: 20, headDim: 4 },
  "many-experts": { seed: 59, experts: 24, topK: 5, width: 6 },
  bfloat16: { seed: 60, dtype: "BF16" },
} as const satisfies Record<string, RandomModelShape>;

/** A property of models that a backend may refuse, when its author says so. */
export type ModelFeature = keyof typeof shapes;

/** Random models with one feature each, against the formula: whole, pruned, merged, and with a cache. */
export function modelCases(source: BackendSource, unsupported: readonly ModelFeature[]): ConformanceCase[] {
  return (Object.keys(shapes) as ModelFeature[]).map((feature) => {
    const { model, weights, tensors } = randomModel(shapes[feature]);
    if (unsupported.includes(feature)) {
      return {
        name: `random model with ${feature}: is refused`,
        run: async () => {
          const backend = await createBackend(source);
          await expectCode(() => backend.load({ model, weights }), ["COPPICE_BACKEND_UNSUPPORTED"], "load");
        },
      };
    }
    return {
      name: `random model with ${feature}: gives what the formula gives`,
      run: () =>
        withRunner(source, { model, weights }, async (runner) => {
          const sequences = randomSequences(model, [8, 3, 11]);
          for (const plan of [undefined, prunedPlan(model, 61), mergedPlan(model, 62)]) {
            const expected = sequences.flatMap((ids) =>
              slowForward({ model, weights, tensors }, [...ids], plan).logits.flat(),
            );
            expectClose(await allLogits(runner, sequences, plan), expected, 1e-4, "logits");
            await checkCached(
              runner,
              sequences,
              [
                [6, 1, 4],
                [1, 1, 1],
                [1, 1, 6],
              ],
              plan,
            );
          }
        }),
    };
  });
}
