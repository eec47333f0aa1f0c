import { type CriterionPlugins, createRegistry, isPlugin, Rng, type ScoreRequest } from "@coppice/core";
import * as criteria from "@coppice/criteria";
import { intoMemory, type MemoryModel } from "@coppice/plugin-kit";
import { type FixtureName, loadFixture } from "@coppice/plugin-kit/node";
import { expect } from "vitest";

export const registry = createRegistry(
  Object.values(criteria).flatMap((value) => (isPlugin(value) ? [value] : [])),
);

export async function score<N extends keyof CriterionPlugins>(
  name: N,
  request: Omit<ScoreRequest, "rng">,
  options: CriterionPlugins[N] = {} as CriterionPlugins[N],
): Promise<Float64Array[]> {
  const criterion = await registry.create("criterion", name, options as never, undefined);
  return criterion.score({ rng: Rng.fromSeed(1), ...request });
}

export async function fixtureModel(name: FixtureName): Promise<MemoryModel> {
  const { model, weights } = await loadFixture(name);
  return intoMemory(model, weights);
}

/** @param of "row": relative to the largest of the layer, for sums of signed values, which may cancel */
export function expectNear(
  actual: readonly Float64Array[],
  expected: readonly number[][],
  of: "value" | "row" = "value",
): void {
  expect(actual.map((row) => row.length)).toEqual(expected.map((row) => row.length));
  actual.forEach((row, layer) => {
    const wanted = expected[layer] as number[];
    const largest = Math.max(...wanted.map(Math.abs));
    row.forEach((value, expert) => {
      const scale = of === "row" ? largest : Math.abs(wanted[expert] as number);
      const off = Math.abs(value - (wanted[expert] as number));
      expect(off, `layer ${layer}, expert ${expert}`).toBeLessThanOrEqual(1e-5 * scale);
    });
  });
}
