import type { Plan, Runner } from "@coppice/core";
import {
  allLogits,
  allPositions,
  type BackendSource,
  randomSequences,
  withRunner,
} from "./backend-subject.js";
import { expectClose, expectEqual, expectThat } from "./compare.js";
import type { ConformanceCase } from "./conformance-case.js";
import type { MemoryModel } from "./memory-model.js";
import { mergedPlan, prunedPlan, sampleRules, skippingPlan } from "./sample-plans.js";
import { slowForward } from "./slow-model.js";

const tolerance = 1e-4;
const lengths = [6, 1, 13, 4];

/** Layer ranges, boundaries, positions, targets, batches and the cache. */
export function runCases(source: BackendSource, name: string, loaded: MemoryModel): ConformanceCase[] {
  const test = (
    what: string,
    body: (runner: Runner, loaded: MemoryModel, sequences: Int32Array[]) => Promise<void>,
  ): ConformanceCase => ({
    name: `${name}: ${what}`,
    async run() {
      await withRunner(source, loaded, (runner) =>
        body(runner, loaded, randomSequences(loaded.model, lengths)),
      );
    },
  });
  return [
    test("boundaries are the layers' inputs, and only those asked for", async (runner, loaded, sequences) => {
      const layers = loaded.model.layers.length;
      const asked = [1, layers];
      const { boundaries, logits, tokenLayers } = await runner.run({ sequences, boundaries: asked });
      expectThat(logits === undefined, "no positions were given, yet the result has logits");
      expectEqual([...boundaries.keys()].sort(), [...new Set(asked)].sort(), "layers of the boundaries");
      expectWork(tokenLayers, total(sequences) * layers);
      const slow = sequences.map((ids) => slowForward(loaded, [...ids]).hidden);
      for (const layer of asked) {
        const expected = slow.flatMap((hidden) => (hidden[layer] as number[][]).flat());
        expectClose(boundaries.get(layer), expected, tolerance, `boundary ${layer}`);
      }
    }),
    test("running up to a layer and on from it equals one run", async (runner, loaded, sequences) => {
      const layers = loaded.model.layers.length;
      for (const plan of [undefined, mergedPlan(loaded.model, 31)]) {
        const whole = await allLogits(runner, sequences, plan);
        for (let cut = 1; cut < layers; cut++) {
          const shared = { sequences, ...(plan && { plan }) };
          const start = await runner.run({ ...shared, to: cut, boundaries: [cut] });
          const hidden = start.boundaries.get(cut);
          expectThat(hidden !== undefined, `boundary ${cut} is missing`);
          const kept = hidden.slice();
          const end = await runner.run({ ...shared, from: cut, hidden, positions: allPositions(sequences) });
          expectClose(end.logits, whole, 1e-5, `logits, cut before layer ${cut}`);
          expectEqual(hidden, kept, "the caller's hidden states after the run");
          expectWork(start.tokenLayers, total(sequences) * cut);
          expectWork(end.tokenLayers, total(sequences) * (layers - cut));
        }
      }
    }),
    test("positions select rows of the logits", async (runner, loaded, sequences) => {
      const whole = await allLogits(runner, sequences);
      const positions = [[1, 4, 5], [0], [], [3]].map((wanted) => Int32Array.from(wanted));
      const { logits } = await runner.run({ sequences, positions });
      const rows = [1, 4, 5, 6, 23];
      const vocab = loaded.model.vocabSize;
      const expected = rows.flatMap((row) => [...whole.subarray(row * vocab, (row + 1) * vocab)]);
      expectClose(logits, expected, 1e-5, "logits of the wanted rows");
      const none = await runner.run({ sequences, positions: sequences.map(() => new Int32Array(0)) });
      expectEqual(none.logits, [], "logits of no position");
    }),
    test("targets give log-probabilities and the most likely tokens", async (runner, loaded, sequences) => {
      const vocab = loaded.model.vocabSize;
      const positions = allPositions(sequences);
      const targets = randomSequences(loaded.model, lengths, 32);
      const logits = await allLogits(runner, sequences);
      const result = await runner.run({ sequences, positions, targets });
      expectThat(result.logits === undefined, "targets were given, yet the result has logits");
      const packed = targets.flatMap((tokens) => [...tokens]);
      const rows = packed.map((_, row) => Array.from(logits.subarray(row * vocab, (row + 1) * vocab)));
      const logProbs = rows.map((row, r) => (row[packed[r] as number] as number) - logSumExp(row));
      expectClose(result.targetLogProbs, logProbs, tolerance, "targetLogProbs");
      const best = rows.map((row) => row.indexOf(Math.max(...row)));
      expectEqual(result.argmax, best, "argmax");
    }),
    test("a repeated position scores one more target", async (runner, _, sequences) => {
      const first = sequences.slice(0, 1);
      const positions = [Int32Array.of(0, 2, 2, 2)];
      const targets = [Int32Array.of(1, 5, 3, 5)];
      const { targetLogProbs = [], argmax = [] } = await runner.run({ sequences: first, positions, targets });
      const single = await runner.run({
        sequences: first,
        positions: [Int32Array.of(0, 2)],
        targets: [Int32Array.of(1, 3)],
      });
      expectThat(targetLogProbs.length === 4, `4 rows were wanted, ${targetLogProbs.length} came`);
      const once = single.targetLogProbs ?? [];
      expectClose(targetLogProbs.slice(1, 2), targetLogProbs.slice(3), 0, "one target asked for twice");
      expectClose(
        Float32Array.of(targetLogProbs[0] as number, targetLogProbs[2] as number),
        once,
        1e-6,
        "both",
      );
      expectEqual(argmax.slice(0, 2), single.argmax ?? [], "most likely tokens");
    }),
    test("a ragged batch equals its sequences one by one", async (runner, loaded, sequences) => {
      for (const plan of [undefined, mergedPlan(loaded.model, 33)]) {
        const batch = await allLogits(runner, sequences, plan);
        const single: number[] = [];
        for (const sequence of sequences) {
          for (const value of await allLogits(runner, [sequence], plan)) single.push(value);
        }
        expectClose(batch, single, 1e-5, "logits");
      }
    }),
    test("equal runs give equal bits", async (runner, _, sequences) => {
      expectEqual(await allLogits(runner, sequences), await allLogits(runner, sequences), "logits");
    }),
    test("a memory of the first layer changes no bit", async (runner, { model }, sequences) => {
      const rest = { sequences: sequences.slice(1), positions: allPositions(sequences.slice(1)) };
      const start = await runner.run({ sequences: rest.sequences, to: 1, boundaries: [1] });
      const hidden = start.boundaries.get(1);
      const later = model.layers.length > 1 && hidden ? [{ ...rest, from: 1, hidden }] : [];
      for (const request of [{ sequences, positions: allPositions(sequences) }, ...later]) {
        const memory = runner.createMemory?.();
        if (!memory) return;
        for (const plan of [prunedPlan(model, 35), mergedPlan(model, 36), undefined, prunedPlan(model, 37)]) {
          const planned = { ...request, ...(plan && { plan }) };
          const fresh = await runner.run(planned);
          const known = await runner.run({ ...planned, memory });
          expectEqual(known.logits, fresh.logits ?? [], "logits with a memory");
          expectThat(known.tokenLayers === fresh.tokenLayers, "a memory changed tokenLayers");
        }
        memory.dispose();
        expectThat(memory.bytes === 0, `a memory that was disposed holds ${memory.bytes} bytes`);
      }
    }),
    test("the caller's arrays stay as they are", async (runner, _, sequences) => {
      const kept = sequences.map((sequence) => sequence.slice());
      await allLogits(runner, sequences);
      sequences.forEach((sequence, s) => {
        expectEqual(sequence, kept[s] as Int32Array, `tokens of sequence ${s} after the run`);
      });
    }),
    test("cached decoding equals one run, token by token and in pieces", async (runner, loaded) => {
      const ids = randomSequences(loaded.model, [9, 5, 14], 34);
      const pieces = [
        [4, 1, 6],
        [1, 1, 1],
        [1, 1, 1],
        [3, 2, 6],
      ];
      const { model } = loaded;
      const { ratio, "top-p": topP } = sampleRules;
      for (const plan of [
        undefined,
        mergedPlan(model, 35),
        skippingPlan(model, ratio),
        skippingPlan(model, topP),
      ])
        await checkCached(runner, ids, pieces, plan);
    }),
    test("tokens are spared among those that come together, and none that comes alone", async (runner, loaded) => {
      const ids = randomSequences(loaded.model, [11, 9, 14], 37);
      const pieces = [
        [4, 1, 6],
        [1, 1, 2],
        [5, 1, 1],
        [1, 6, 5],
      ];
      await checkPieces(runner, loaded, ids, pieces, skippingPlan(loaded.model, sampleRules.spare));
    }),
    test("two caches of one runner do not mix", async (runner, loaded) => {
      const [a, b] = randomSequences(loaded.model, [6, 8], 36) as [Int32Array, Int32Array];
      const first = runner.createCache(1);
      const second = runner.createCache(1);
      await allLogits(runner, [a.subarray(0, 3)], undefined, { cache: first });
      await allLogits(runner, [b.subarray(0, 5)], undefined, { cache: second });
      const endOfA = await allLogits(runner, [a.subarray(3)], undefined, { cache: first });
      const endOfB = await allLogits(runner, [b.subarray(5)], undefined, { cache: second });
      first.dispose();
      second.dispose();
      const vocab = loaded.model.vocabSize;
      expectClose(endOfA, (await allLogits(runner, [a])).subarray(3 * vocab), tolerance, "end of the first");
      expectClose(endOfB, (await allLogits(runner, [b])).subarray(5 * vocab), tolerance, "end of the second");
    }),
  ];
}

/** Feeds `ids` to a cache piece by piece and compares all logits with one run without a cache. */
export async function checkCached(
  runner: Runner,
  ids: readonly Int32Array[],
  pieces: readonly (readonly number[])[],
  plan?: Plan,
): Promise<void> {
  const vocab = runner.model.vocabSize;
  const whole = await allLogits(runner, ids, plan);
  const cache = runner.createCache(ids.length);
  expectEqual(
    cache.lengths,
    ids.map(() => 0),
    "lengths of an empty cache",
  );
  const done = ids.map(() => 0);
  for (const [i, piece] of pieces.entries()) {
    const part = ids.map((sequence, s) => {
      const start = done[s] as number;
      return sequence.subarray(start, start + (piece[s] as number));
    });
    const logits = await allLogits(runner, part, plan, { cache });
    const expected = part.flatMap((tokens, s) => {
      const before = ids.slice(0, s).reduce((sum, sequence) => sum + sequence.length, 0);
      const row = before + (done[s] as number);
      return [...whole.subarray(row * vocab, (row + tokens.length) * vocab)];
    });
    expectClose(logits, expected, tolerance, `logits of piece ${i} with a cache`);
    part.forEach((tokens, s) => {
      done[s] = (done[s] as number) + tokens.length;
    });
    expectEqual(cache.lengths, done, `cache lengths after piece ${i}`);
  }
  cache.dispose();
}

/** Feeds `ids` to a cache piece by piece and compares all logits with the formula, which may depend on the pieces. */
export async function checkPieces(
  runner: Runner,
  loaded: MemoryModel,
  ids: readonly Int32Array[],
  pieces: readonly (readonly number[])[],
  plan?: Plan,
): Promise<void> {
  const vocab = loaded.model.vocabSize;
  const expected = ids.map((sequence, s) => {
    const lengths = pieces.map((piece) => piece[s] as number);
    return slowForward(loaded, [...sequence], plan, lengths).logits.flat();
  });
  const cache = runner.createCache(ids.length);
  for (const piece of pieces) {
    const starts = [...cache.lengths];
    const part = ids.map((sequence, s) =>
      sequence.subarray(starts[s] as number, (starts[s] as number) + (piece[s] as number)),
    );
    const logits = await allLogits(runner, part, plan, { cache });
    const wanted = expected.flatMap((values, s) => {
      const start = starts[s] as number;
      return values.slice(start * vocab, (start + (piece[s] as number)) * vocab);
    });
    expectClose(logits, wanted, tolerance, `logits with a cache that grew to ${cache.lengths.join(", ")}`);
  }
  cache.dispose();
}

/** A backend may compute less than was asked for, and counts what it computed. */
function expectWork(tokenLayers: number, asked: number): void {
  expectThat(
    Number.isSafeInteger(tokenLayers) && tokenLayers > 0 && tokenLayers <= asked,
    `tokenLayers is ${tokenLayers}, expected a whole number from 1 to the ${asked} that were asked for`,
  );
}

function total(sequences: readonly Int32Array[]): number {
  return sequences.reduce((sum, sequence) => sum + sequence.length, 0);
}

function logSumExp(values: readonly number[]): number {
  const max = Math.max(...values);
  return max + Math.log(values.reduce((sum, value) => sum + Math.exp(value - max), 0));
}
