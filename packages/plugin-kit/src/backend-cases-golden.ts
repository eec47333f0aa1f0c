import { moeLayers } from "@coppice/core";
import { checkPlans } from "./backend-cases-models.js";
import { allLogits, type BackendSource, type LayerRecord, tapped, withRunner } from "./backend-subject.js";
import { expectClose, expectEqual } from "./compare.js";
import type { ConformanceCase } from "./conformance-case.js";
import type { FixtureSource } from "./fixture.js";
import { intoMemory } from "./memory-model.js";

/** Choices of every token by ascending expert, as not every reference implementation orders them. */
export function byExpert(
  experts: ArrayLike<number>,
  gates: ArrayLike<number>,
  topK: number,
): { experts: number[]; gates: number[] } {
  const order = Array.from(experts, (_, choice) => choice).sort(
    (a, b) => Math.floor(a / topK) - Math.floor(b / topK) || (experts[a] as number) - (experts[b] as number),
  );
  return {
    experts: order.map((choice) => experts[choice] as number),
    gates: order.map((choice) => gates[choice] as number),
  };
}

/** Against what the reference implementation of the family computed. */
export function goldenCases(source: BackendSource, fixture: FixtureSource): ConformanceCase[] {
  const name = (text: string) => `${fixture.name}: ${text}`;
  return [
    {
      name: name("logits are those of the reference implementation"),
      async run() {
        const loaded = await fixture.load();
        const logits = await withRunner(source, loaded, (runner) =>
          allLogits(runner, loaded.golden.sequences),
        );
        expectClose(logits, loaded.golden.logits, 2e-4, "logits");
      },
    },
    {
      name: name("greedy tokens are those of the reference implementation, with a cache"),
      async run() {
        const loaded = await fixture.load();
        const { sequences, greedy } = loaded.golden;
        const found = await withRunner(source, loaded, async (runner) => {
          const cache = runner.createCache(1);
          const tokens: number[] = [];
          let next = sequences[0] as Int32Array;
          while (tokens.length < greedy.length) {
            const last = Int32Array.of(next.length - 1);
            const targets = [Int32Array.of(0)];
            const { argmax } = await runner.run({ sequences: [next], positions: [last], targets, cache });
            tokens.push(argmax?.[0] ?? -1);
            next = Int32Array.of(argmax?.[0] ?? 0);
          }
          cache.dispose();
          return tokens;
        });
        expectEqual(found, greedy, `greedy tokens ${found.join(" ")}, expected ${greedy.join(" ")}`);
      },
    },
    {
      name: name("the router chooses and weighs as the reference implementation does"),
      async run() {
        const loaded = await fixture.load();
        const { sequences } = loaded.golden;
        const records = await withRunner(source, loaded, (runner) =>
          tapped(runner, { sequences }, ["routerLogits", "routing"]),
        );
        const layers = moeLayers(loaded.model).map(({ index }) => index);
        expectEqual(
          records.map(({ layer }) => layer),
          layers,
          "MoE layers that the tap saw",
        );
        for (const router of loaded.golden.routers) {
          const { layer } = router;
          const record = records.find((one) => one.layer === layer) as LayerRecord;
          const { routerLogits, slots, gates } = record.arrays;
          expectClose(routerLogits, router.logits, 2e-4, `router logits of layer ${layer}`);
          const found = byExpert(slots, gates, record.topK);
          const expected = byExpert(router.experts, router.gates, record.topK);
          expectEqual(found.experts, expected.experts, `chosen experts of layer ${layer}`);
          expectClose(found.gates, expected.gates, 2e-4, `gate weights of layer ${layer}`);
        }
      },
    },
    {
      name: name("pruned and merged, it gives what the formula and smaller models give"),
      async run() {
        const { model, weights } = await fixture.load();
        const loaded = await intoMemory(model, weights);
        await withRunner(source, loaded, (runner) => checkPlans(source, runner, loaded));
      },
    },
  ];
}
