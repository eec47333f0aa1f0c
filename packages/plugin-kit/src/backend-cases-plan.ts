import { canonicalPlan, createPlan, type MoeModel, moeLayers, type Plan } from "@coppice/core";
import { allLogits, type BackendSource, randomSequences, withRunner } from "./backend-subject.js";
import { expectClose } from "./compare.js";
import type { ConformanceCase } from "./conformance-case.js";
import type { MemoryModel } from "./memory-model.js";
import { acceptsMaps, mappedPlan, mergedPlan, mixedPlan, prunedPlan, topOnePlan } from "./sample-plans.js";
import { sliceModel } from "./slice-model.js";
import { slowForward } from "./slow-model.js";

const tolerance = 1e-4;
const lengths = [5, 9, 2];

/** Every way to say what a plan does must give the same logits. */
export function planCases(source: BackendSource, name: string, loaded: MemoryModel): ConformanceCase[] {
  const slow = (loaded: MemoryModel, plan?: Plan) =>
    randomSequences(loaded.model, lengths).flatMap((ids) =>
      slowForward(loaded, [...ids], plan).logits.flat(),
    );
  const run = (loaded: MemoryModel, plan?: Plan) =>
    withRunner(source, loaded, (runner) => allLogits(runner, randomSequences(loaded.model, lengths), plan));

  const equalsBoth = (what: string, make: (model: MoeModel) => Plan): ConformanceCase[] => [
    {
      name: `${name}: ${what} gives what the formula gives`,
      async run() {
        const plan = make(loaded.model);
        expectClose(await run(loaded, plan), slow(loaded, plan), tolerance, "logits");
      },
    },
    {
      name: `${name}: ${what} gives what the smaller model gives`,
      async run() {
        const plan = make(loaded.model);
        expectClose(await run(loaded, plan), await run(sliceModel(loaded, plan)), tolerance, "logits");
      },
    },
  ];
  const mapCases: ConformanceCase[] = [
    {
      name: `${name}: a router map gives what the formula gives`,
      async run() {
        const plan = mappedPlan(loaded.model, 14);
        expectClose(await run(loaded, plan), slow(loaded, plan), tolerance, "logits");
      },
    },
    {
      name: `${name}: a router map with a lower top-k gives what the formula gives`,
      async run() {
        const { layers } = mappedPlan(loaded.model, 15);
        const plan = createPlan(
          loaded.model,
          layers.map((layer) => ({ ...layer, topK: 1 })),
        );
        expectClose(await run(loaded, plan), slow(loaded, plan), tolerance, "logits");
      },
    },
  ];
  return [
    ...equalsBoth("pruning", (model) => prunedPlan(model, 11)),
    ...equalsBoth("merging", (model) => mergedPlan(model, 12)),
    ...equalsBoth("lowering top-k", topOnePlan),
    ...equalsBoth("a plan that differs by layer", (model) => mixedPlan(model, 13)),
    ...(acceptsMaps(loaded.model) ? mapCases : []),
    {
      name: `${name}: the plan that changes nothing changes nothing`,
      async run() {
        const whole = await run(loaded);
        expectClose(await run(loaded, createPlan(loaded.model)), whole, 1e-5, "logits of the empty plan");
        const everything = createPlan(
          loaded.model,
          moeLayers(loaded.model).map(({ index, feedForward: { experts } }) => ({
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
          prunedPlan(loaded.model, 16),
          mergedPlan(loaded.model, 17),
          ...(acceptsMaps(loaded.model) ? [mappedPlan(loaded.model, 18)] : []),
        ]) {
          const canonical = canonicalPlan(plan, loaded.model);
          expectClose(await run(loaded, plan), await run(loaded, canonical), 1e-5, "logits");
        }
      },
    },
    {
      name: `${name}: plans that alternate on one runner do not leave traces`,
      async run() {
        const sequences = randomSequences(loaded.model, lengths);
        const { model } = loaded;
        const plans = [
          undefined,
          mergedPlan(model, 19),
          prunedPlan(model, 20),
          mergedPlan(model, 21),
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
