import { Rng } from "@coppice/core";
import { describe, expect, test } from "vitest";
import { Ridge } from "../src/ridge.js";

function problem(tokens: number, features: number, outputs: number, seed: number) {
  const rng = Rng.fromSeed(seed);
  const random = (count: number) => Float64Array.from({ length: count }, () => rng.uniform() - 0.5);
  const weights = random(tokens).map((value) => Math.max(0, value) + (value > 0.4 ? 3 : 0));
  return { inputs: random(tokens * features), targets: random(tokens * outputs), weights };
}

/** ∂/∂B of Σ w ‖B x - y‖² + λ m ‖B‖², halved, which is 0 at the solution and nowhere else. */
function gradient(
  { inputs, targets, weights }: ReturnType<typeof problem>,
  features: number,
  found: Float64Array,
  penalty: number,
): number[] {
  const tokens = weights.length;
  const outputs = targets.length / tokens;
  const trace = Array.from(inputs, (x, i) => (weights[Math.floor(i / features)] as number) * x * x);
  const ridge = (penalty * trace.reduce((a, b) => a + b)) / features;
  return Array.from(found, (value, at) => {
    const [row, column] = [Math.floor(at / features), at % features];
    let sum = ridge * value;
    for (let t = 0; t < tokens; t++) {
      let miss = -(targets[t * outputs + row] as number);
      for (let i = 0; i < features; i++) {
        miss += (found[row * features + i] as number) * (inputs[t * features + i] as number);
      }
      sum += (weights[t] as number) * miss * (inputs[t * features + column] as number);
    }
    return sum;
  });
}

describe("Ridge", () => {
  test.each([
    [40, 6, 3],
    [6, 17, 2],
    [9, 9, 1],
  ])("with %i tokens and %i features is where the gradient is 0", (tokens, features, outputs) => {
    const given = problem(tokens, features, outputs, tokens);
    const penalties = [10, 0.1, 1e-3];
    const found = new Ridge(given.inputs, features).solve(given.targets, given.weights, penalties);
    found.forEach((values, i) => {
      expect(values).toHaveLength(outputs * features);
      for (const slope of gradient(given, features, values, penalties[i] as number)) {
        expect(Math.abs(slope)).toBeLessThan(1e-11);
      }
    });
  });

  test("goes on when tokens repeat", () => {
    const inputs = Float64Array.of(1, 2, 1, 2, 1, 2);
    const [found] = new Ridge(inputs, 2).solve(Float64Array.of(5, 5, 5), Float64Array.of(1, 1, 1), [1e-30]);
    expect((found?.[0] as number) + 2 * (found?.[1] as number)).toBeCloseTo(5, 4);
  });
});
