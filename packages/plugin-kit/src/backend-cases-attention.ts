import type { AttentionPlan, RunAttention, Runner, SpanRule } from "@coppice/core";
import {
  allLogits,
  type BackendSource,
  createBackend,
  randomSequences,
  withRunner,
} from "./backend-subject.js";
import {
  checkPieces,
  checkRun,
  checkSteps,
  attentionLengths as lengths,
  logitsOf,
  refuses,
  refusesAttention,
} from "./check-attention.js";
import { expectClose, expectCode, expectEqual, expectThat } from "./compare.js";
import type { ConformanceCase } from "./conformance-case.js";
import type { MemoryModel } from "./memory-model.js";
import { randomModel } from "./random-model.js";
import type { RandomModelShape } from "./random-shape.js";
import { sampleAttention, sampleSpanRules } from "./sample-attention.js";
import { everythingPlan, mergedPlan } from "./sample-plans.js";
import { type ModelFeature, sampleShapes } from "./sample-shapes.js";

const tolerance = 1e-4;
/** Kinds of attention beside the plain one. */
const features: readonly ModelFeature[] = [
  "query-key-norm",
  "partial-rotary",
  "one-head-per-group",
  "projection-norms",
  "norm-after-rotary",
  "attention-sinks",
  "scaled-inputs",
  "skipped-experts",
];
/** Models with no layer that a plan could limit. */
const fixed: readonly ModelFeature[] = ["sliding-window", "latent-attention"];

/** Attention plans, with and without caches; a backend that does not know them must refuse them. */
export function attentionCases(
  source: BackendSource,
  unsupported: readonly ModelFeature[],
): ConformanceCase[] {
  const usable = (names: readonly ModelFeature[]) => names.filter((name) => !unsupported.includes(name));
  const test = (
    what: string,
    shape: RandomModelShape,
    body: (runner: Runner, loaded: MemoryModel) => Promise<void>,
  ): ConformanceCase => ({
    name: `attention plan: ${what}`,
    async run() {
      const loaded = randomModel(shape);
      const known = (await createBackend(source)).capabilities.attention?.spans === true;
      await withRunner(source, loaded, (runner) =>
        known ? body(runner, loaded) : refusesAttention(runner, { plan: sampleAttention(loaded.model) }),
      );
    },
  });
  return [
    test("a batch of texts shorter and longer than the spans", wide, async (runner, loaded) => {
      const sequences = randomSequences(loaded.model, lengths);
      const plan = sampleAttention(loaded.model);
      await checkRun(runner, loaded, sequences, { plan });
      await checkRun(runner, loaded, sequences, { plan, lengths: [30, 9, 60, 45] });
      await checkRun(runner, loaded, sequences, { plan: { ...plan, sinks: 0, blockSize: 5 } });
    }),
    test("every length of one text", wide, async (runner, loaded) => {
      const plan = sampleAttention(loaded.model, { blockSize: 3, sinks: 2 });
      for (let length = 1; length <= 12; length++)
        await checkRun(runner, loaded, randomSequences(loaded.model, [length]), { plan });
    }),
    test("prompts that a cache continues piece by piece", wide, async (runner, loaded) => {
      const plan = sampleAttention(loaded.model);
      await checkPieces(runner, loaded, { plan, lengths });
      await checkPieces(runner, loaded, { plan, lengths: lengths.map(() => 24) });
      // Resolved at the model's context.
      await checkPieces(runner, loaded, { plan: { ...plan, rules: sampleSpanRules.map(shrunk) } });
    }),
    test("512 steps behind prompts of several lengths", tiny, async (runner, loaded) => {
      const { model } = loaded;
      await checkSteps(runner, loaded, sampleAttention(model, { sinks: 4 }), [3, 37], 512);
    }),
    test("equals no plan where every rule is dense", wide, async (runner, loaded) => {
      const sequences = randomSequences(loaded.model, lengths);
      const dense = sampleAttention(loaded.model, {
        rules: sampleSpanRules.map(() => ({ alpha: 0, beta: 1 })),
      });
      const expected = await allLogits(runner, sequences);
      const logits = await allLogits(runner, sequences, undefined, { attention: { plan: dense } });
      expectClose(logits, expected, 1e-5, "logits");
    }),
    test("a text scored at once and token by token", wide, async (runner, loaded) => {
      const plan = sampleAttention(loaded.model);
      const [ids] = randomSequences(loaded.model, [30]) as [Int32Array];
      const scored = await allLogits(runner, [ids], undefined, { attention: { plan } });
      const cache = runner.createCache(1, { plan, lengths: [30] });
      const stepped: number[] = [];
      for (const token of ids)
        stepped.push(...(await allLogits(runner, [Int32Array.of(token)], undefined, { cache })));
      cache.dispose();
      expectClose(stepped, scored, tolerance, "logits");
    }),
    test("together with a plan for experts", sampleShapes["shared-expert-gate"], async (runner, loaded) => {
      const plan = sampleAttention(loaded.model);
      const sequences = randomSequences(loaded.model, lengths);
      await checkRun(runner, loaded, sequences, { plan }, mergedPlan(loaded.model, 82));
      await checkPieces(runner, loaded, { plan, lengths }, { experts: everythingPlan(loaded, 83) });
    }),
    test("a cache that is left as it was by a run that was aborted", wide, async (runner, loaded) => {
      const plan = sampleAttention(loaded.model);
      const [ids] = randomSequences(loaded.model, [40]) as [Int32Array];
      const expected = logitsOf(loaded, ids, plan, 40);
      const vocab = loaded.model.vocabSize;
      const cache = runner.createCache(1, { plan, lengths: [40] });
      await runner.run({ sequences: [ids.subarray(0, 30)], cache });
      const controller = new AbortController();
      const tap = { fields: ["routing"] as const, onLayer: () => controller.abort() };
      const aborted = { sequences: [ids.subarray(10, 17)], cache, tap, signal: controller.signal };
      await expectCode(() => runner.run(aborted), ["COPPICE_ABORTED"], "run");
      expectEqual(cache.lengths, [30], "cache lengths after the aborted run");
      for (let at = 30; at < 40; at++) {
        const step = await allLogits(runner, [ids.subarray(at, at + 1)], undefined, { cache });
        expectClose(step, expected.slice(at * vocab, (at + 1) * vocab), tolerance, `logits at ${at}`);
      }
      cache.dispose();
    }),
    test("requests that are refused", wide, async (runner, { model }) => {
      const plan = sampleAttention(model);
      const sequences = randomSequences(model, [5, 6]);
      const cache = runner.createCache(2, { plan });
      const refused = (attention: RunAttention, code: Parameters<typeof expectCode>[1][number]) =>
        refuses(runner, attention, code);
      await refused({}, "COPPICE_USAGE");
      await refused({ plan, masker: {} }, "COPPICE_USAGE");
      await refused({ plan, lengths: [5] }, "COPPICE_USAGE");
      await refused({ plan, lengths: [5, 0] }, "COPPICE_USAGE");
      await refused({ plan, lengths: [5, model.contextLength + 1] }, "COPPICE_ATTENTION_LENGTH");
      const owner = { ...plan.model, fingerprint: "another" };
      await refused({ plan: { ...plan, model: owner } }, "COPPICE_ATTENTION_MODEL");
      await refused({ plan: { ...plan, layers: plan.layers.slice(1) } }, "COPPICE_ATTENTION_INVALID");
      await expectCode(
        () => runner.run({ sequences, cache, attention: { plan } }),
        ["COPPICE_USAGE"],
        "a run with a cache and attention of its own",
      );
      await runner.run({ sequences, cache });
      cache.dispose();
    }),
    ...usable(features).map((feature) =>
      test(`on ${feature}`, sampleShapes[feature], async (runner, loaded) => {
        const plan = sampleAttention(loaded.model);
        expectThat(
          plan.layers.some((layer) => layer !== null),
          "the model has a layer that can be limited",
        );
        await checkRun(runner, loaded, randomSequences(loaded.model, [24, 9]), { plan });
        await checkPieces(runner, loaded, { plan, lengths }, { batches: [[1, 2, 3]] });
      }),
    ),
    ...usable(fixed).map(
      (feature): ConformanceCase => ({
        name: `attention plan: ${feature} is left as it is`,
        run: () =>
          withRunner(source, randomModel(sampleShapes[feature]), async (runner) => {
            const { model } = runner;
            const owner = {
              family: "random",
              fingerprint: model.fingerprint,
              heads: 4,
              kvHeads: 2,
              headDim: 8,
            };
            const plan: AttentionPlan = {
              ...sampleAttention(randomModel(wide).model),
              model: { ...owner, layers: model.layers.length },
              layers: model.layers.map(() => [1, 2]),
            };
            const { attention } = (await createBackend(source)).capabilities;
            const code = attention?.spans ? "COPPICE_ATTENTION_UNSUPPORTED" : "COPPICE_BACKEND_UNSUPPORTED";
            await refuses(runner, { plan }, code);
          }),
      }),
    ),
  ];
}

/** Five KV heads are more groups of spans than backends may tell apart. */
const wide: RandomModelShape = { seed: 91, heads: 10, kvHeads: 5, headDim: 4, layers: 3 };
const tiny: RandomModelShape = {
  seed: 92,
  layers: 1,
  hidden: 8,
  heads: 4,
  kvHeads: 2,
  headDim: 4,
  experts: 2,
  topK: 1,
  width: 4,
  vocab: 12,
  context: 1024,
};

/** A rule of the same kind whose spans are short at the model's context of 256, too. */
function shrunk({ alpha, beta }: SpanRule): SpanRule {
  return beta === 1 ? { alpha: 0, beta: 1 } : { alpha: alpha + 8, beta: beta / 16 };
}
