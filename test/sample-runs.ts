import {
  createPlan,
  type MoeModel,
  moeLayers,
  type Plan,
  Rng,
  type Runner,
  selectExperts,
} from "@coppice/core";
import { expect } from "vitest";

/** Logits of every position. */
export async function logitsOf(
  runner: Runner,
  sequences: readonly Int32Array[],
  plan?: Plan,
): Promise<Float32Array> {
  const positions = sequences.map((ids) => Int32Array.from(ids.keys()));
  const { logits } = await runner.run({ sequences, positions, ...(plan && { plan }) });
  return logits as Float32Array;
}

export function largestDifference(a: Float32Array, b: Float32Array): number {
  expect(a.length).toBe(b.length);
  return a.reduce((most, value, i) => Math.max(most, Math.abs(value - (b[i] as number))), 0);
}

/** Half of the experts of every layer, chosen by chance. */
export function halved(model: MoeModel): Plan {
  const rng = Rng.fromSeed(3);
  return createPlan(
    model,
    moeLayers(model).map(({ index, feedForward }) => {
      const scores = feedForward.experts.map(() => rng.uniform());
      const experts = selectExperts(feedForward, scores, Math.floor(scores.length / 2), index);
      return { layer: index, experts };
    }),
  );
}
