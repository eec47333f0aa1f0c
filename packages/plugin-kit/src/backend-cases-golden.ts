import { allLogits, type BackendSource, recordingTap, withRunner } from "./backend-subject.js";
import { expectClose, expectEqual } from "./compare.js";
import type { ConformanceCase } from "./conformance-case.js";
import type { FixtureSource } from "./fixture.js";

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
        const { tap, records } = recordingTap(["routerLogits", "routing"]);
        await withRunner(source, loaded, (runner) => runner.run({ sequences: loaded.golden.sequences, tap }));
        expectEqual([records.length], [loaded.golden.routers.length], "MoE layers that the tap saw");
        loaded.golden.routers.forEach((router, i) => {
          const arrays = records[i]?.arrays;
          expectClose(arrays?.routerLogits, router.logits, 2e-4, `router logits of MoE layer ${i}`);
          expectEqual(arrays?.slots, router.experts, `chosen experts of MoE layer ${i}`);
          expectClose(arrays?.gates, router.gates, 2e-4, `gate weights of MoE layer ${i}`);
        });
      },
    },
  ];
}
