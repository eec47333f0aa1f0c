import { canonicalPlan, createPlan, moeLayers, type Plan } from "@coppice/core";
import { allLogits, type BackendSource, randomSequences, withRunner } from "./backend-subject.js";
import { expectClose } from "./compare.js";
import type { ConformanceCase } from "./conformance-case.js";
import type { MemoryModel } from "./memory-model.js";
import {
  acceptsMaps,
  alignedPlan,
  everythingPlan,
  mappedPlan,
  mergedPlan,
  mixedPlan,
  prunedPlan,
  refitPlan,
  repairedPlan,
  sampleRules,
  skippingPlan,
  topOnePlan,
} from "./sample-plans.js";
import { sliceModel } from "./slice-model.js";
import { slowForward } from "./slow-model.js";

const tolerance = 1e-4;
const lengths = [5, 9, 2];

/** Every way to say what a plan does must give the same logits. */
export function planCases(source: BackendSource, name: string, loaded: MemoryModel): ConformanceCase[] {
  const { model } = loaded;
  const slow = (loaded: MemoryModel, plan?: Plan) =>
    randomSequences(model, lengths).flatMap((ids) => slowForward(loaded, [...ids], plan).logits.flat());
  const run = (loaded: MemoryModel, plan?: Plan) =>
    withRunner(source, loaded, (runner) => allLogits(runner, randomSequences(model, lengths), plan));

  const equalsBoth = (what: string, plan: Plan): ConformanceCase[] => [
    {
      name: `${name}: ${what} gives what the formula gives`,
      async run() {
        expectClose(await run(loaded, plan), slow(loaded, plan), tolerance, "logits");
      },
    },
    {
      name: `${name}: ${what} gives what the smaller model gives`,
      async run() {
        expectClose(await run(loaded, plan), await run(sliceModel(loaded, plan)), tolerance, "logits");
      },
    },
  ];
  const mapCases: ConformanceCase[] = [
    {
      name: `${name}: a router map gives what the formula gives`,
      async run() {
        const plan = mappedPlan(model, 14);
        expectClose(await run(loaded, plan), slow(loaded, plan), tolerance, "logits");
      },
    },
    {
      name: `${name}: a router map with a lower top-k gives what the formula gives`,
      async run() {
        const { layers } = mappedPlan(model, 15);
        const plan = createPlan(
          model,
          layers.map((layer) => ({ ...layer, topK: 1 })),
        );
        expectClose(await run(loaded, plan), slow(loaded, plan), tolerance, "logits");
      },
    },
  ];
  return [
    ...equalsBoth("pruning", prunedPlan(model, 11)),
    ...equalsBoth("merging", mergedPlan(model, 12)),
    ...equalsBoth("merging by unit", alignedPlan(model, 23)),
    ...equalsBoth("changing down projections", refitPlan(model, 31)),
    ...equalsBoth("router rows", repairedPlan(loaded, 24)),
    ...Object.entries(sampleRules).flatMap(([rule, skip]) =>
      equalsBoth(`skipping by the rule ${rule}`, skippingPlan(model, skip)),
    ),
    ...equalsBoth("everything together", everythingPlan(loaded, 25)),
    ...equalsBoth("lowering top-k", topOnePlan(model)),
    ...equalsBoth("a plan that differs by layer", mixedPlan(model, 13)),
    ...(acceptsMaps(model) ? mapCases : []),
    {
      name: `${name}: the plan that changes nothing changes nothing`,
      async run() {
        const whole = await run(loaded);
        expectClose(await run(loaded, createPlan(model)), whole, 1e-5, "logits of the empty plan");
        const everything = createPlan(
          model,
          moeLayers(model).map(({ index, feedForward: { experts } }) => ({
            layer: index,
            experts: experts.map((_, i) => i),
            merge: experts.map((_, i) => experts.map((_, j) => (i === j ? 1 : 0))),
          })),
        );
        expectClose(await run(loaded, everything), whole, 1e-5, "logits of the identity merge");
      },
    },
    {
      name: `${name}: a plan and its canonical form give the same`,
      async run() {
        for (const plan of [
          prunedPlan(model, 16),
          mergedPlan(model, 17),
          alignedPlan(model, 26),
          refitPlan(model, 32),
          everythingPlan(loaded, 27),
          ...(acceptsMaps(model) ? [mappedPlan(model, 18)] : []),
        ]) {
          const canonical = canonicalPlan(plan, model);
          expectClose(await run(loaded, plan), await run(loaded, canonical), 1e-5, "logits");
        }
      },
    },
    {
      name: `${name}: plans that alternate on one runner do not leave traces`,
      async run() {
        const sequences = randomSequences(model, lengths);
        const everything = everythingPlan(loaded, 29);
        const plans = [
          undefined,
          mergedPlan(model, 19),
          prunedPlan(model, 20),
          alignedPlan(model, 28),
          refitPlan(model, 33),
          mergedPlan(model, 21),
          everything,
          createPlan(
            model,
            everything.layers.map(({ skip: _, ...layer }) => layer),
          ),
          ...(acceptsMaps(model) ? [mappedPlan(model, 22)] : []),
          topOnePlan(model),
        ];
        const expected: Float32Array[] = [];
        for (const plan of plans) expected.push(await run(loaded, plan));
        await withRunner(source, loaded, async (runner) => {
          for (const i of [...plans.keys(), ...[...plans.keys()].reverse()]) {
            const found = await allLogits(runner, sequences, plans[i]);
            expectClose(found, expected[i] as Float32Array, 1e-5, `logits of plan ${i} after other plans`);
          }
        });
      },
    },
  ];
}
