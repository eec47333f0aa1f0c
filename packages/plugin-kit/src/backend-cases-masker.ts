import {
  type AttentionCapabilities,
  type AttentionMasker,
  type BlockMask,
  blockMask,
  type DecodeView,
  type KeyPages,
  limitableLayers,
  type PrefillView,
  type Runner,
} from "@coppice/core";
import {
  allLogits,
  type BackendSource,
  createBackend,
  randomSequences,
  withRunner,
} from "./backend-subject.js";
import { refusesAttention } from "./check-attention.js";
import { expectClose, expectCode, expectEqual, expectThat } from "./compare.js";
import type { ConformanceCase } from "./conformance-case.js";
import type { MemoryModel } from "./memory-model.js";
import { randomModel } from "./random-model.js";
import type { RandomModelShape } from "./random-shape.js";
import { sampleShapes } from "./sample-shapes.js";
import { type SlowSight, slowForward } from "./slow-model.js";

const tolerance = 1e-4;
const blockSize = 3;
const pageSize = 2;
const prompts = [7, 1, 14];
const steps = 9;

/** Masks and pages that a masker chooses while a text runs; a backend that does not know them must refuse them. */
export function maskerCases(source: BackendSource): ConformanceCase[] {
  const test = (
    what: string,
    shape: RandomModelShape,
    needs: keyof AttentionCapabilities,
    masker: AttentionMasker,
    body: (runner: Runner, loaded: MemoryModel) => Promise<void>,
  ): ConformanceCase => ({
    name: `attention masker: ${what}`,
    async run() {
      const loaded = randomModel(shape);
      const known = (await createBackend(source)).capabilities.attention?.[needs] === true;
      await withRunner(source, loaded, (runner) =>
        known ? body(runner, loaded) : refusesAttention(runner, { masker }),
      );
    },
  });
  return [
    test("masks of prompts", grouped, "prefillMasks", { prefill: sampleMask }, async (runner, loaded) => {
      const sequences = randomSequences(loaded.model, [...prompts, 2, 20]);
      const masker = { prefill: sampleMask };
      const logits = await allLogits(runner, sequences, undefined, { attention: { masker } });
      const expected = sequences.flatMap((ids, s) => slowLogits(loaded, ids, prefillSight(s)));
      expectClose(logits, expected, tolerance, "logits");
    }),
    test("a layer of its own", learned, "prefillMasks", { prefill: sampleMask }, async (runner, loaded) => {
      const free = limitableLayers(loaded.model).map(({ index }) => index);
      const asked = new Set<number>();
      const masker: AttentionMasker = {
        prefill: (view) => {
          asked.add(view.layer);
          return sampleMask(view);
        },
      };
      const sequences = randomSequences(loaded.model, prompts);
      const logits = await allLogits(runner, sequences, undefined, { attention: { masker } });
      expectEqual([...asked], free, "layers that the masker was asked about");
      const expected = sequences.flatMap((ids, s) => {
        const sight = prefillSight(s);
        return slowLogits(loaded, ids, (layer, ...at) => !free.includes(layer) || sight(layer, ...at));
      });
      expectClose(logits, expected, tolerance, "logits");
    }),
    test("masks of prompts in a cache", grouped, "prefillMasks", { prefill: sampleMask }, (runner, loaded) =>
      checkCached(
        runner,
        loaded,
        { prefill: sampleMask },
        (s, prompt) => (layer, head, query, key) =>
          query >= prompt || prompt === 1 || prefillSight(s)(layer, head, query, key),
      ),
    ),
    test("pages of keys", grouped, "decodePages", { decode: samplePages }, (runner, loaded) =>
      checkCached(
        runner,
        loaded,
        { decode: samplePages },
        (s, prompt) => (layer, head, query, key) =>
          query < prompt || decodeSight(loaded, s)(layer, head, query, key),
      ),
    ),
    test("what it is shown", grouped, "prefillMasks", { prefill: sampleMask }, async (runner, loaded) => {
      const [ids] = randomSequences(loaded.model, [11]) as [Int32Array];
      const slow = slowForward(loaded, [...ids]).attention;
      let shown = 0;
      const prefill = ({ layer, tokens, queries, keys }: PrefillView) => {
        expectThat(tokens === ids.length, `${tokens} tokens are shown of ${ids.length}`);
        expectClose(queries, slow[layer]?.queries.flat(2) ?? [], tolerance, `queries of layer ${layer}`);
        expectClose(keys, slow[layer]?.keys.flat(2) ?? [], tolerance, `keys of layer ${layer}`);
        shown++;
        return undefined;
      };
      await runner.run({ sequences: [ids], attention: { masker: { prefill } } });
      // The last layer may be left out where nothing of it is asked for.
      expectThat(shown >= loaded.model.layers.length - 1, `${shown} layers were shown`);
    }),
    test(
      "what it is shown of a cache",
      grouped,
      "decodePages",
      { decode: samplePages },
      async (runner, loaded) => {
        const [ids] = randomSequences(loaded.model, [11]) as [Int32Array];
        const slow = slowForward(loaded, [...ids]).attention;
        const seen: number[] = [];
        const decode = ({ layer, positions, queries, keys }: DecodeView) => {
          const last = slow[layer]?.queries[positions - 1] ?? [];
          expectClose(queries, last.flat(), tolerance, `queries of layer ${layer} at ${positions - 1}`);
          const all = slow[layer]?.keys.slice(0, positions) ?? [];
          expectClose(keys, all.flat(2), tolerance, `keys of layer ${layer} up to ${positions}`);
          if (layer === 0) seen.push(positions);
          return undefined;
        };
        const cache = runner.createCache(1, { masker: { decode } });
        await runner.run({ sequences: [ids.subarray(0, 8)], cache });
        for (let at = 8; at < 11; at++) await runner.run({ sequences: [ids.subarray(at, at + 1)], cache });
        cache.dispose();
        expectEqual(seen, [9, 10, 11], "keys shown of layer 0, step by step");
      },
    ),
    test("unusable masks", grouped, "prefillMasks", { prefill: sampleMask }, async (runner, loaded) => {
      const sequences = randomSequences(loaded.model, [9]);
      for (const mask of unusableMasks()) {
        const attention = { masker: { prefill: () => mask } };
        await expectCode(
          () => runner.run({ sequences, attention }),
          ["COPPICE_ATTENTION_INVALID"],
          "a run with a mask that does not fit",
        );
      }
      await runner.run({ sequences });
    }),
  ];
}

const grouped: RandomModelShape = { seed: 93, heads: 6, kvHeads: 3, headDim: 4 };
/** Its first and last layer slide. */
const learned: RandomModelShape = sampleShapes["attention-sinks"];

/** An arbitrary pattern, with the block of the query in it. */
function inPattern(layer: number, sequence: number, head: number, row: number, column: number): boolean {
  return row === column || (7 * row + 5 * column + 4 * head + 11 * layer + 2 * sequence) % 3 === 0;
}

function sampleMask({ layer, sequence, heads, tokens }: PrefillView): BlockMask {
  return blockMask(blockSize, Math.ceil(tokens / blockSize), heads, (head, row, column) =>
    inPattern(layer, sequence, head, row, column),
  );
}

function samplePages({ layer, sequence, kvHeads, positions }: DecodeView): KeyPages {
  const last = Math.floor((positions - 1) / pageSize);
  const pages = Array.from({ length: last + 1 }, (_, page) => page);
  const heads = Array.from({ length: kvHeads }, (_, head) =>
    Int32Array.from(pages.filter((page) => inPattern(layer, sequence, head, last, page))),
  );
  return { pageSize, heads };
}

function prefillSight(sequence: number): SlowSight {
  const block = (position: number) => Math.floor(position / blockSize);
  return (layer, head, query, key) => inPattern(layer, sequence, head, block(query), block(key));
}

function decodeSight({ model }: MemoryModel, sequence: number): SlowSight {
  const page = (position: number) => Math.floor(position / pageSize);
  return (layer, head, query, key) => {
    const attention = model.layers[layer]?.attention;
    if (attention?.kind !== "gqa") throw new Error(`layer ${layer} has no KV heads`);
    const shared = Math.floor(head / (attention.heads / attention.kvHeads));
    return inPattern(layer, sequence, shared, page(query), page(key));
  };
}

function slowLogits(loaded: MemoryModel, ids: Int32Array, sight: SlowSight): number[] {
  return slowForward(loaded, [...ids], undefined, undefined, sight).logits.flat();
}

/** Prompts in one run, then one token of every sequence at a time, then two at once, which see everything. */
async function checkCached(
  runner: Runner,
  loaded: MemoryModel,
  masker: AttentionMasker,
  sightOf: (sequence: number, prompt: number) => SlowSight,
): Promise<void> {
  const vocab = loaded.model.vocabSize;
  const sequences = randomSequences(
    loaded.model,
    prompts.map((prompt) => prompt + steps + 2),
  );
  const expected = sequences.map((ids, s) => {
    const prompt = prompts[s] as number;
    const sight = sightOf(s, prompt);
    return slowLogits(
      loaded,
      ids,
      (layer, head, query, key) => query >= prompt + steps || sight(layer, head, query, key),
    );
  });
  const cache = runner.createCache(prompts.length, { masker });
  const runs = [undefined, ...new Array<number>(steps).fill(1), 2];
  for (const [run, tokens] of runs.entries()) {
    const starts = [...cache.lengths];
    const part = sequences.map((ids, s) => {
      const start = starts[s] as number;
      return ids.subarray(start, start + (tokens ?? (prompts[s] as number)));
    });
    const logits = await allLogits(runner, part, undefined, { cache });
    const wanted = part.flatMap((ids, s) => {
      const start = (starts[s] as number) * vocab;
      return (expected[s] as number[]).slice(start, start + ids.length * vocab);
    });
    expectClose(logits, wanted, tolerance, `logits of run ${run}`);
  }
  cache.dispose();
}

/** For 9 tokens and 6 heads. */
function unusableMasks(): BlockMask[] {
  const good = blockMask(blockSize, 3, 1, () => true);
  return [
    { ...good, blocks: 4 },
    { ...good, blockSize: 0 },
    { ...good, layouts: 4 },
    { ...good, rows: good.rows.subarray(1) },
    blockMask(blockSize, 3, 2, (layout, row, column) => layout === 0 || row !== 1 || column !== 1),
    { ...good, columns: Int32Array.from(good.columns, (column) => 2 - column) },
  ];
}
