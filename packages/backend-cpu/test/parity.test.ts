import { cpu } from "@coppice/backend-cpu";
import { reference } from "@coppice/backend-reference";
import { type Backend, Rng, type Runner, type RunRequest } from "@coppice/core";
import { type RandomModelShape, randomModel } from "@coppice/plugin-kit";
import fc from "fast-check";
import { expect, test } from "vitest";
import { maxDifference } from "./max-difference.js";
import { randomPlan } from "./random-plan.js";
import { anyKind, plain, randomBatch } from "./random-shapes.js";

test.each([
  ["plain layers", plain],
  ["layers of every kind", anyKind],
])("%s, any plan, any batch: the same as the reference backend", async (_, shapes) => {
  const backends = await Promise.all([cpu.create({}, undefined), reference.create({}, undefined)]);
  await fc.assert(
    fc.asyncProperty(shapes as fc.Arbitrary<RandomModelShape & { seed: number }>, (shape) =>
      compare(backends, shape),
    ),
    { numRuns: 20, seed: 1 },
  );
});

async function compare(
  backends: readonly [Backend, Backend],
  shape: RandomModelShape & { readonly seed: number },
): Promise<void> {
  const loaded = randomModel({ ...shape, topK: 2 });
  const rng = Rng.fromSeed(shape.seed);
  const plan = randomPlan(loaded.model, rng);
  const sequences = randomBatch(loaded.model, rng);
  const positions = sequences.map((ids) => Int32Array.from(ids.keys()).filter(() => rng.bernoulli(0.5)));
  const targets = positions.map((wanted) => wanted.map(() => rng.integer(loaded.model.vocabSize)));
  const both = (request: RunRequest) => runBoth(backends, loaded, request);
  // A router map may nearly cancel the chosen values, and hidden states then grow without bound.
  const close = (found: Float32Array | undefined, expected: Float32Array | undefined) => {
    const largest = expected?.reduce((most, value) => Math.max(most, Math.abs(value)), 1) ?? 1;
    expect(maxDifference(found, expected) / largest).toBeLessThan(1e-4);
  };
  const [a, b] = await both({ sequences, plan, positions });
  close(a.logits, b.logits);
  const [c, d] = await both({ sequences, plan, positions, targets });
  close(c.targetLogProbs, d.targetLogProbs);
  const to = loaded.model.layers.length;
  const [e, f] = await both({ sequences, plan, boundaries: [1, to] });
  for (const layer of [1, to]) close(e.boundaries.get(layer), f.boundaries.get(layer));
}

async function runBoth(
  backends: readonly [Backend, Backend],
  loaded: ReturnType<typeof randomModel>,
  request: RunRequest,
) {
  const results = [];
  for (const backend of backends) {
    const runner: Runner = await backend.load(loaded);
    try {
      results.push(await runner.run(request));
    } finally {
      await runner.dispose();
    }
  }
  return results as [(typeof results)[0], (typeof results)[0]];
}
