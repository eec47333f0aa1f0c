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
    golden.routers.forEach((router, i) => {
      const choices = results.flatMap((result) => result.layers[i]?.choices ?? []).flat();
      expect(choices.map(({ slot }) => slot)).toEqual([...router.experts]);
      const gates = choices.map(({ gate }, c) => Math.abs(gate - (router.gates[c] as number)));
      expect(Math.max(...gates)).toBeLessThan(1e-5);
    });
  });
});
