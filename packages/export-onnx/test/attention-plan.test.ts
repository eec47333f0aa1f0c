import { reference } from "@coppice/backend-reference";
import { memoryTarget, writeFiles } from "@coppice/checkpoint";
import { type AttentionPlan, limitableLayers, type MoeModel, type WeightReader } from "@coppice/core";
import { exportTargets } from "@coppice/export-onnx";
import { type RandomModelShape, randomModel, sampleAttention, sampleShapes } from "@coppice/plugin-kit";
import { describe, expect, test } from "vitest";
import { graphFiles } from "../src/graph-files.js";
import { largestDifference } from "./exported-session.js";
import { SpanSession } from "./span-session.js";

const ids = Int32Array.from([5, 3, 8, 1, 2, 9, 4, 4, 7, 1, 3, 6, 2, 2, 10, 4, 1, 8, 5, 5, 9, 3, 7, 6]);

/** [tokens, vocab], with explicit masks */
async function masked(
  model: MoeModel,
  weights: WeightReader,
  sequence: Int32Array,
  plan: AttentionPlan,
  length: number,
): Promise<Float32Array> {
  const backend = await reference.create({}, undefined);
  await using runner = await backend.load({ model, weights });
  const { logits } = await runner.run({
    sequences: [sequence],
    positions: [Int32Array.from(sequence.keys())],
    attention: { plan, lengths: [length] },
  });
  return logits as Float32Array;
}

/** Every kind of attention that a plan can limit, beside layers that it cannot, with enough heads to be sorted. */
const { "skipped-experts": _, ...exportable } = sampleShapes;
const limitable = Object.entries(exportable)
  .map(([name, shape]: [string, RandomModelShape]): [string, RandomModelShape] => [
    name,
    { ...shape, heads: shape.heads ?? 8, kvHeads: shape.kvHeads ?? 4 },
  ])
  .filter(([, shape]) => limitableLayers(randomModel(shape).model).length > 0);

/** The first and the third head of a layer are alike, so that heads do not stay in their order. */
function mixed(model: MoeModel): AttentionPlan {
  const plan = sampleAttention(model);
  const layers = plan.layers.map(
    (rules) => rules?.map((rule, h) => (h === 2 ? (rules[0] as number) : rule)) ?? null,
  );
  return { ...plan, layers };
}

describe.each(limitable)("a random model with %s under a plan", (_, shape) => {
  test("gives what the masked reference backend gives", async () => {
    const { model, weights } = randomModel(shape);
    const plan = mixed(model);
    const output = memoryTarget();
    const { positions } = graphFiles(model, weights, { target: "cpu" });
    const length = Math.min(positions, ids.length);
    const exported = graphFiles(model, weights, { target: "cpu", attention: plan, attentionLength: length });
    await writeFiles(exported.files, output);
    const sequence = ids.subarray(0, length);
    const expected = await masked(model, weights, sequence, plan, length);
    const row = (at: number) => expected.subarray(at * model.vocabSize, (at + 1) * model.vocabSize);
    await using session = await SpanSession.open(output, exported.spans?.layout.spans ?? []);
    const [whole] = await session.run(sequence);
    expect(largestDifference(whole as Float32Array, expected)).toBeLessThan(1e-4);
    // A prompt shorter than the sinks, one behind it that is longer than some windows, and then token by token.
    session.reset();
    const single = Array.from({ length: Math.max(0, length - 9) }, (_, i) => 10 + i);
    const ends = [...new Set([2, 9, ...single].map((end) => Math.min(end, length)))];
    let begin = 0;
    for (const end of ends) {
      const [logits] = await session.run(sequence.subarray(begin, end));
      const rows = expected.subarray(begin * model.vocabSize, end * model.vocabSize);
      expect(largestDifference(logits as Float32Array, rows)).toBeLessThan(1e-4);
      begin = end;
    }
    // Beside a text that is shorter, padded behind it.
    session.reset(2);
    const [short, long] = [Math.ceil(length / 4), Math.ceil(length / 2)];
    const [first, second] = await session.run(sequence.subarray(0, short), sequence.subarray(0, long));
    const until = (end: number) => expected.subarray(0, end * model.vocabSize);
    expect(largestDifference(first as Float32Array, until(short))).toBeLessThan(1e-4);
    expect(largestDifference(second as Float32Array, until(long))).toBeLessThan(1e-4);
    for (let step = 0; long + step < length; step++) {
      const at = [short + step, long + step];
      const found = await session.run(...at.map((from) => sequence.subarray(from, from + 1)));
      for (const [b, position] of at.entries()) {
        expect(largestDifference(found[b] as Float32Array, row(position))).toBeLessThan(1e-4);
      }
    }
  });
});

test("spans are those of the length that they were asked for, and none where they see all of it", () => {
  const { model, weights } = randomModel(sampleShapes.biases);
  const plan = sampleAttention(model, { rules: [{ alpha: 16, beta: 0 }], layers: [[0, 0], null] });
  const spans = (attentionLength?: number) =>
    graphFiles(model, weights, {
      target: "wasm",
      attention: plan,
      ...(attentionLength !== undefined && { attentionLength }),
    }).spans;
  expect(spans(32)).toMatchObject({
    length: 32,
    density: 0.75,
    layout: { spans: [{ sinks: 3, window: 13 }] },
  });
  expect(spans()).toMatchObject({ length: model.contextLength });
  expect(spans(16)).toBeUndefined();
});

test("what cannot be carried is refused with the reason", () => {
  const { model, weights } = randomModel(sampleShapes.biases);
  const attention = sampleAttention(model);
  const { contextLength } = model;
  expect(() => graphFiles(model, weights, { target: "webgpu", attention })).toThrow(
    /webgpu carry no attention plan/,
  );
  for (const target of exportTargets.filter((target) => target !== "webgpu")) {
    const attentionLength = contextLength + 1;
    expect(() => graphFiles(model, weights, { target, attention, attentionLength })).toThrow(
      new RegExp(`at ${attentionLength} tokens; the graph runs texts of 1 to ${contextLength}`),
    );
  }
  const other = { ...attention, model: { ...attention.model, kvHeads: 7 } };
  expect(() => graphFiles(model, weights, { target: "cpu", attention: other })).toThrow(/7/);
});
