import { createPlan, isCoppiceError, type RunRequest } from "@coppice/core";
import {
  allLogits,
  type BackendSource,
  createBackend,
  randomSequences,
  withRunner,
} from "./backend-subject.js";
import { expectClose, expectCode, expectEqual } from "./compare.js";
import type { ConformanceCase } from "./conformance-case.js";
import { randomModel } from "./random-model.js";

/** Abort, disposal and requests that must be refused. */
export function lifecycleCases(source: BackendSource): ConformanceCase[] {
  const loaded = randomModel({ seed: 71 });
  const { model } = loaded;
  const layers = model.layers.length;
  const sequences = randomSequences(model, [5, 3]);
  return [
    {
      name: "an aborted signal stops load and run before any work",
      async run() {
        const signal = AbortSignal.abort();
        const backend = await createBackend(source);
        const load = () => backend.load({ model, weights: loaded.weights, signal });
        await expectCode(load, ["COPPICE_ABORTED"], "load");
        await withRunner(source, loaded, (runner) =>
          expectCode(() => runner.run({ sequences, signal }), ["COPPICE_ABORTED"], "run"),
        );
      },
    },
    {
      name: "a run that is aborted on its way ends, and the runner goes on working",
      run: () =>
        withRunner(source, loaded, async (runner) => {
          const expected = await allLogits(runner, sequences);
          const controller = new AbortController();
          const long = randomSequences(model, new Array<number>(8).fill(200));
          const running = runner.run({ sequences: long, signal: controller.signal });
          setTimeout(() => controller.abort(), 1);
          try {
            await running;
          } catch (error) {
            if (!isCoppiceError(error, "COPPICE_ABORTED")) throw error;
          }
          expectClose(await allLogits(runner, sequences), expected, 0, "logits after the abort");
        }),
    },
    {
      name: "a disposed runner refuses work, and may be disposed again",
      async run() {
        const runner = await (await createBackend(source)).load({ model, weights: loaded.weights });
        await allLogits(runner, sequences);
        await runner.dispose();
        await runner.dispose();
        await runner[Symbol.asyncDispose]();
        await expectCode(() => runner.run({ sequences }), ["COPPICE_BACKEND_DISPOSED"], "run");
        await expectCode(async () => runner.createCache(1), ["COPPICE_BACKEND_DISPOSED"], "createCache");
      },
    },
    {
      name: "a disposed cache refuses work",
      run: () =>
        withRunner(source, loaded, async (runner) => {
          const cache = runner.createCache(sequences.length);
          await runner.run({ sequences, cache });
          cache.dispose();
          cache.dispose();
          await expectCode(() => runner.run({ sequences, cache }), ["COPPICE_BACKEND_DISPOSED"], "run");
        }),
    },
    {
      name: "a run that is refused leaves its cache as it was",
      run: () =>
        withRunner(source, loaded, async (runner) => {
          const [ids] = sequences as [Int32Array];
          const cache = runner.createCache(1);
          await runner.run({ sequences: [ids], cache });
          const outside = Int32Array.of(99);
          const refused = { sequences: [ids], cache, positions: [outside] };
          await expectCode(() => runner.run(refused), ["COPPICE_USAGE"], "run");
          expectEqual(cache.lengths, [ids.length], "cache lengths after the refusal");
          const more = await allLogits(runner, [ids], undefined, { cache });
          const whole = await allLogits(runner, [Int32Array.from([...ids, ...ids])]);
          expectClose(more, whole.subarray(ids.length * model.vocabSize), 1e-4, "logits after the refusal");
          cache.dispose();
        }),
    },
    {
      name: "two runners of one backend live apart",
      async run() {
        const backend = await createBackend(source);
        const first = await backend.load({ model, weights: loaded.weights });
        const other = randomModel({ seed: 72, experts: 5, topK: 1 });
        const second = await backend.load({ model: other.model, weights: other.weights });
        try {
          const expected = await allLogits(second, sequences);
          await first.run({ sequences });
          await first.dispose();
          expectClose(await allLogits(second, sequences), expected, 0, "logits after the other's disposal");
        } finally {
          await first.dispose();
          await second.dispose();
        }
      },
    },
    {
      name: "a plan of another model is refused",
      run: () =>
        withRunner(source, loaded, async (runner) => {
          const plan = createPlan({ ...model, fingerprint: "another" });
          await expectCode(() => runner.run({ sequences, plan }), ["COPPICE_PLAN_MODEL"], "run");
        }),
    },
    ...Object.entries(unusable(sequences, model.hiddenSize, layers)).map(([what, request]) => ({
      name: `a request is refused: ${what}`,
      run: () =>
        withRunner(source, loaded, async (runner) => {
          await expectCode(() => runner.run(request), ["COPPICE_USAGE"], what);
          await runner.run({ sequences });
        }),
    })),
    {
      name: "a request is refused: a cache of other sequences, or of another runner",
      run: () =>
        withRunner(source, loaded, async (runner) => {
          const cache = runner.createCache(sequences.length + 1);
          await expectCode(
            () => runner.run({ sequences, cache }),
            ["COPPICE_USAGE"],
            "a cache of other sequences",
          );
          cache.dispose();
          await withRunner(source, loaded, async (other) => {
            const foreign = other.createCache(sequences.length);
            const request = { sequences, cache: foreign };
            await expectCode(() => runner.run(request), ["COPPICE_USAGE"], "a cache of another runner");
            foreign.dispose();
          });
          const partial = runner.createCache(sequences.length);
          const request = { sequences, cache: partial, to: layers - 1 };
          await expectCode(() => runner.run(request), ["COPPICE_USAGE"], "a cache with a part of the layers");
          partial.dispose();
        }),
    },
  ];
}

function unusable(sequences: Int32Array[], hidden: number, layers: number): Record<string, RunRequest> {
  const tokens = sequences.reduce((sum, { length }) => sum + length, 0);
  const positions = sequences.map(() => Int32Array.of(0));
  const states = new Float32Array(tokens * hidden);
  return {
    "no sequences": { sequences: [] },
    "an empty sequence": { sequences: [sequences[0] as Int32Array, new Int32Array(0)] },
    "a token beyond the vocabulary": { sequences: [Int32Array.of(1_000_000)] },
    "a negative token": { sequences: [Int32Array.of(-1)] },
    "a range that ends before it starts": { sequences, from: 1, to: 1, hidden: states },
    "a layer that does not exist": { sequences, to: layers + 1 },
    "a later start without hidden states": { sequences, from: 1 },
    "hidden states of another size": { sequences, from: 1, hidden: states.subarray(1) },
    "hidden states for the first layer": { sequences, hidden: states },
    "a boundary outside the range": { sequences, to: 1, boundaries: [layers] },
    "a boundary before the first layer": { sequences, boundaries: [0] },
    "positions for other sequences": { sequences, positions: positions.slice(1) },
    "a position beyond its sequence": { sequences, positions: [Int32Array.of(99), Int32Array.of(0)] },
    "descending positions": { sequences, positions: [Int32Array.of(2, 1), Int32Array.of(0)] },
    "positions without the last layer": { sequences, positions, to: layers - 1 },
    "a tap's mask for other tokens": {
      sequences,
      tap: { fields: ["everyOutput"], every: new Uint8Array(tokens - 1), onLayer() {} },
    },
    "targets without positions": { sequences, targets: positions },
    "targets of another number": { sequences, positions, targets: [Int32Array.of(1, 2), Int32Array.of(1)] },
    "a target beyond the vocabulary": {
      sequences,
      positions,
      targets: [Int32Array.of(1e6), Int32Array.of(1)],
    },
  };
}
