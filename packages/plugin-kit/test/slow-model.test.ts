import { intoMemory, slowForward } from "@coppice/plugin-kit";
import { fixtureNames, loadFixture } from "@coppice/plugin-kit/node";
import { describe, expect, test } from "vitest";

// The yardstick of the conformance suites is itself held to the outputs of the reference implementations.
describe.each(fixtureNames)("slowForward on %s", (name) => {
  test("gives the logits and the routing of the reference implementation", async () => {
    const { model, weights, golden } = await loadFixture(name);
    const source = await intoMemory(model, weights);
    const results = golden.sequences.map((ids) => slowForward(source, [...ids]));
    const logits = results.flatMap((result) => result.logits.flat());
    expect(logits.length).toBe(golden.logits.length);
    const worst = Math.max(...logits.map((value, i) => Math.abs(value - (golden.logits[i] as number))));
    expect(worst).toBeLessThan(2e-5);
    for (const router of golden.routers) {
      const choices = results.flatMap(
        (result) => result.layers.find(({ layer }) => layer === router.layer)?.choices ?? [],
      );
      choices.forEach((chosen, token) => {
        const k = chosen.length;
        const gates = new Map(chosen.map(({ slot, gate }) => [slot, gate]));
        const expected = [...router.experts.subarray(token * k, (token + 1) * k)];
        expect([...gates.keys()].sort()).toEqual(expected.toSorted());
        expected.forEach((expert, i) => {
          expect(gates.get(expert)).toBeCloseTo(router.gates[token * k + i] as number, 5);
        });
      });
    }
  });
});
