import { cpu } from "@coppice/backend-cpu";
import { reference } from "@coppice/backend-reference";
import {
  type Backend,
  createPlan,
  type LayerPlan,
  type MoeModel,
  moeLayers,
  type Plan,
  Rng,
  type Runner,
  type RunRequest,
} from "@coppice/core";
import { randomModel } from "@coppice/plugin-kit";
import fc from "fast-check";
import { expect, test } from "vitest";
import { maxDifference } from "./max-difference.js";

/** Any valid plan: some layers left out, slots in any order, merges, router maps, other top-k. */
function randomPlan(model: MoeModel, rng: Rng): Plan {
  const layers: LayerPlan[] = [];
  for (const { index, feedForward } of moeLayers(model)) {
    if (rng.bernoulli(0.2)) continue;
    const total = feedForward.experts.length;
    const slots = 1 + rng.integer(total);
    const kept = rng.sample(total, slots);
    const rows = () =>
      kept.map((own) => Array.from({ length: total }, (_, j) => (j === own ? 1 : 0) + near()));
    const near = () => (rng.bernoulli(0.5) ? 0 : 0.2 * rng.normal());
    layers.push({
      layer: index,
      experts: kept,
      topK: 1 + rng.integer(Math.min(slots, 3)),
      ...(rng.bernoulli(0.5) && { merge: rows() }),
      ...(rng.bernoulli(0.3) && { routerMap: rows() }),
    });
  }
  return createPlan(model, layers);
}

/** Sequences that share beginnings, of different lengths. */
function randomBatch(model: MoeModel, rng: Rng): Int32Array[] {
  const stems = Array.from({ length: 2 }, () =>
    Array.from({ length: 8 }, () => rng.integer(model.vocabSize)),
  );
  return Array.from({ length: 1 + rng.integer(6) }, () => {
    const stem = rng.pick(stems).slice(0, rng.integer(9));
    const rest = Array.from({ length: 1 + rng.integer(9) }, () => rng.integer(3));
    return Int32Array.from([...stem, ...rest]);
  });
}

test("any plan, any batch: the same as the reference backend", async () => {
  const backends = await Promise.all([cpu.create({}, undefined), reference.create({}, undefined)]);
  await fc.assert(
    fc.asyncProperty(
      fc.record({
        seed: fc.nat(10_000),
        layers: fc.integer({ min: 1, max: 3 }),
        heads: fc.constantFrom(2, 4),
        kvHeads: fc.constantFrom(1, 2),
        headDim: fc.constantFrom(8, 16, 20),
        experts: fc.integer({ min: 3, max: 20 }),
        normalize: fc.boolean(),
        qkNorm: fc.boolean(),
        bias: fc.boolean(),
        tied: fc.boolean(),
      }),
      async (shape) => {
        const loaded = randomModel({ ...shape, topK: 2 });
        const rng = Rng.fromSeed(shape.seed);
        const plan = randomPlan(loaded.model, rng);
        const sequences = randomBatch(loaded.model, rng);
        const positions = sequences.map((ids) =>
          Int32Array.from(ids.keys()).filter(() => rng.bernoulli(0.5)),
        );
        const targets = positions.map((wanted) => wanted.map(() => rng.integer(loaded.model.vocabSize)));
        const both = (request: RunRequest) => runBoth(backends, loaded, request);
        const [a, b] = await both({ sequences, plan, positions });
        expect(maxDifference(a.logits, b.logits)).toBeLessThan(1e-4);
        const [c, d] = await both({ sequences, plan, positions, targets });
        expect(maxDifference(c.targetLogProbs, d.targetLogProbs)).toBeLessThan(1e-4);
        const to = loaded.model.layers.length;
        const [e, f] = await both({ sequences, plan, boundaries: [1, to] });
        for (const layer of [1, to]) {
          const [found, expected] = [e.boundaries.get(layer), f.boundaries.get(layer)];
          // A router map may nearly cancel the chosen values, and hidden states then grow without bound.
          const largest = expected?.reduce((most, value) => Math.max(most, Math.abs(value)), 1) ?? 1;
          expect(maxDifference(found, expected) / largest).toBeLessThan(1e-4);
        }
      },
    ),
    { numRuns: 20, seed: 1 },
  );
});

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
