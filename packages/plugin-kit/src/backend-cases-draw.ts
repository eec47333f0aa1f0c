import { type DrawRule, drawToken, Rng, type Runner, type RunRequest } from "@coppice/core";
import { type BackendSource, randomSequences, withRunner } from "./backend-subject.js";
import { expectCode, expectEqual, expectThat } from "./compare.js";
import type { ConformanceCase } from "./conformance-case.js";
import { randomModel } from "./random-model.js";

/** How far a random number may be moved without another token: what sums in less precision may be off by. */
const spare = 1e-4;
const lengths = [9, 4];

const rules: readonly DrawRule[] = [
  {},
  { repetitionPenalty: 1.4 },
  { temperature: 1.5, minP: 0.2 },
  { temperature: 1, topP: 0.8 },
  { temperature: 1.2, topK: 20, topP: 0.9, minP: 0.05, repetitionPenalty: 1.3 },
];

/**
 * Runners that draw tokens (`Runner.draws`): the tokens are those that `drawToken` gives for the logits that the runner returns. Others must
 * refuse it.
 */
export function drawCases(source: BackendSource): ConformanceCase[] {
  const loaded = randomModel({ seed: 81 });
  const { model } = loaded;
  const sequences = randomSequences(model, lengths);
  // Two rows of one place, and one of another sequence.
  const positions = [Int32Array.of(3, 8, 8), Int32Array.of(3)];
  const rows = 4;
  const whole: RunRequest = { sequences, positions };
  const drawn = async (runner: Runner, request: RunRequest) => {
    const result = await runner.run(request);
    if (!result.drawn) throw new Error("a draw was asked for, yet the result has no drawn tokens");
    expectThat(result.logits === undefined, "logits are returned besides the drawn tokens");
    return [...result.drawn];
  };
  return [
    {
      name: "drawn tokens are those of the definition",
      run: () =>
        withRunner(source, loaded, async (runner) => {
          if (!runner.draws) return;
          const { logits = new Float32Array(0) } = await runner.run(whole);
          const row = (r: number) => logits.subarray(r * model.vocabSize, (r + 1) * model.vocabSize);
          const rng = Rng.fromSeed(82);
          for (const rule of rules) {
            const seen = Array.from({ length: rows }, (_, r) =>
              Int32Array.from(rng.sample(model.vocabSize, 10 * r)),
            );
            const uniforms = Float64Array.from({ length: rows }, (_, r) => clear(rng, row(r), rule, seen[r]));
            const expected = Array.from(uniforms, (uniform, r) => drawToken(row(r), rule, uniform, seen[r]));
            const found = await drawn(runner, { ...whole, draw: { rule, uniforms, seen } });
            expectEqual(found, expected, `tokens by ${JSON.stringify(rule)}`);
          }
        }),
    },
    {
      name: "drawn tokens follow those of a cache",
      run: () =>
        withRunner(source, loaded, async (runner) => {
          if (!runner.draws) return;
          const [ids] = sequences as [Int32Array];
          const rule = { temperature: 1, topP: 0.9 };
          const rng = Rng.fromSeed(83);
          const caches = [runner.createCache(1), runner.createCache(1)] as const;
          let input = ids;
          for (let step = 0; step < 3; step++) {
            const request = { sequences: [input], positions: [Int32Array.of(input.length - 1)] };
            const { logits = new Float32Array(0) } = await runner.run({ ...request, cache: caches[0] });
            const uniforms = Float64Array.of(clear(rng, logits, rule));
            const found = await drawn(runner, { ...request, cache: caches[1], draw: { rule, uniforms } });
            const token = drawToken(logits, rule, uniforms[0] as number);
            expectEqual(found, [token], `token ${step}`);
            input = Int32Array.of(token);
          }
          for (const cache of caches) cache.dispose();
        }),
    },
    {
      name: "a runner that draws nothing refuses to, and none draws what it cannot",
      run: () =>
        withRunner(source, loaded, async (runner) => {
          const uniforms = new Float64Array(rows);
          const wrong = runner.draws ? new Float64Array(rows - 1) : uniforms;
          const refused = (draw: RunRequest["draw"]) =>
            expectCode(
              () => runner.run({ ...whole, ...(draw && { draw }) }),
              ["COPPICE_USAGE"],
              JSON.stringify(draw),
            );
          await refused({ rule: {}, uniforms: wrong });
          await refused({ rule: { temperature: -1 }, uniforms });
        }),
    },
  ];
}

/** A random number that no place where one token's part ends is close to. */
function clear(rng: Rng, logits: Float32Array, rule: DrawRule, seen?: Int32Array): number {
  for (;;) {
    const uniform = rng.uniform();
    if (uniform < spare || uniform > 1 - spare) continue;
    const at = (by: number, topP = rule.topP) =>
      drawToken(logits, { ...rule, ...(topP !== undefined && { topP }) }, uniform + by, seen);
    const token = at(0);
    const moved = [-spare, spare].flatMap((by) => [at(by), at(0, rule.topP && rule.topP + by)]);
    if (moved.every((other) => other === token)) return uniform;
  }
}
