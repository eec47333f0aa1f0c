import { reference } from "@coppice/backend-reference";
import {
  type AttentionMasker,
  type AttentionPlan,
  attentionPlanModel,
  type RunAttention,
  type Runner,
  spanMask,
} from "@coppice/core";
import {
  type EncodedSequence,
  encodeTask,
  evaluatePositions,
  evaluateTask,
  f1Score,
  generate,
  type Metric,
  normalizeAnswer,
  parseTask,
  type TextAttention,
  type Tokenizer,
} from "@coppice/evaluate";
import { randomModel } from "@coppice/plugin-kit";
import { afterAll, beforeAll, describe, expect, it } from "vitest";

const letters = "\n abcdefghijklmnopqrstuvwxyz0123456789";
/** One token per letter; 0 ends a text. */
const tokenizer: Tokenizer = {
  size: letters.length + 1,
  encode: (text) => Int32Array.from(text, (letter) => letters.indexOf(letter) + 1),
  decode: (ids) => Array.from(ids, (id) => letters[id - 1] ?? "").join(""),
  endToken: 0,
  beginToken: undefined,
  lineBreakCandidates: () => [1],
  hasChatTemplate: false,
  renderChat: () => "",
};

const { model, weights } = randomModel({
  layers: 3,
  heads: 4,
  kvHeads: 2,
  headDim: 8,
  vocab: letters.length + 1,
  context: 128,
  seed: 5,
});

let runner: Runner;
beforeAll(async () => {
  const backend = await reference.create({}, undefined);
  runner = await backend.load({ model, weights });
});
afterAll(() => runner.dispose());

/** Spans of 8 tokens with different windows per head, or of a share of the context. */
function plan(beta: number): AttentionPlan {
  return {
    format: "coppice.attention",
    version: 1,
    model: attentionPlanModel(model),
    blockSize: 2,
    sinks: 2,
    rules: [
      { alpha: 8, beta },
      { alpha: 4, beta: beta / 2 },
      { alpha: 0, beta: 1 },
    ],
    layers: [
      [0, 1],
      [1, 2],
      [1, 0],
    ],
  };
}

const prefill: AttentionMasker["prefill"] = ({ heads, kvHeads, tokens, layer }) =>
  spanMask(Array(kvHeads).fill({ sinks: 2, window: 4 + 2 * layer }), heads, tokens, 2);
const decode: AttentionMasker["decode"] = ({ positions, kvHeads }) => {
  const last = Math.floor((positions - 1) / 4);
  return { pageSize: 4, heads: Array(kvHeads).fill(Int32Array.from(last === 0 ? [0] : [0, last])) };
};

const limits: readonly (readonly [string, TextAttention])[] = [
  ["a plan of fixed spans", { plan: plan(0) }],
  ["masks of prompts", { masker: () => ({ prefill }) }],
  ["chosen pages", { masker: () => ({ decode }) }],
  ["masks and pages", { masker: () => ({ prefill, decode }) }],
];

const samples = Array.from({ length: 6 }, (_, i) => ({
  prompt: `${"the quick brown fox ".repeat(1 + (i % 3))}${i} jumps`,
  answer: ` over ${i} dogs`,
}));
const generation = parseTask(samples.map((sample) => JSON.stringify(sample)).join("\n"), "g.jsonl");
const choices = parseTask(
  samples
    .map(({ prompt, answer }) => JSON.stringify({ prompt, choices: [answer, " a cat"], answer: 0 }))
    .join("\n"),
  "c.jsonl",
);

/** Log-probabilities of what a sequence expects, the prompt in one run and all else token by token. */
async function stepByStep(
  { ids, positions, targets }: EncodedSequence,
  prompt: number,
  attention: RunAttention,
): Promise<number[]> {
  const cache = runner.createCache(1, attention);
  const found: number[] = [];
  for (let at = 0; at < ids.length; ) {
    const end = at === 0 ? prompt : at + 1;
    const { logits = new Float32Array(0) } = await runner.run({
      sequences: [ids.slice(at, end)],
      positions: [Int32Array.from({ length: end - at }, (_, i) => i)],
      cache,
    });
    for (let row = at; row < end; row++) {
      const target = targets[positions.indexOf(row)];
      if (!positions.includes(row) || target === undefined) continue;
      const values = logits.subarray((row - at) * model.vocabSize, (row - at + 1) * model.vocabSize);
      const total = Math.log(values.reduce((sum, value) => sum + Math.exp(value), 0));
      found.push((values[target] as number) - total);
    }
    at = end;
  }
  cache.dispose();
  return found;
}

const withLengths = (attention: TextAttention, length: number): RunAttention =>
  attention.masker ? { masker: attention.masker() } : { plan: attention.plan, lengths: [length] };

const evaluate = (task: typeof generation, metric: Metric, attention?: TextAttention) =>
  evaluateTask({ runner, tokenizer, task, metric, ...(attention && { attention }) });

describe.each([...limits, ["a plan that grows", { plan: plan(0.25) }] as const])(
  "under %s",
  (_, attention) => {
    it("scores answers as if they were written token by token", async () => {
      const task = encodeTask(generation, { tokenizer, model });
      const { scores } = await evaluate(generation, "log-likelihood", attention);
      for (const [i, { sequences, promptTokens }] of task.samples.entries()) {
        const [sequence] = sequences as [EncodedSequence];
        const steps = await stepByStep(sequence, promptTokens, withLengths(attention, sequence.ids.length));
        // The end is any of two tokens; all before it is one.
        const whole = { ...sequence, targets: sequence.targets.slice() };
        whole.targets[whole.targets.length - 1] = task.endTokens[1] as number;
        const other = await stepByStep(whole, promptTokens, withLengths(attention, sequence.ids.length));
        const end = Math.log(Math.exp(steps.at(-1) as number) + Math.exp(other.at(-1) as number));
        const sum = steps.slice(0, -1).reduce((total, value) => total + value, end);
        expect(scores[i]).toBeCloseTo(sum / steps.length, 5);
      }
      const dense = await evaluate(generation, "log-likelihood");
      expect(Math.abs(dense.value - scores.reduce((a, b) => a + b, 0) / scores.length)).toBeGreaterThan(1e-4);
    });

    it("scores choices as if they were written token by token", async () => {
      const task = encodeTask(choices, { tokenizer, model });
      const { scores } = await evaluate(choices, "choice-accuracy", attention);
      for (const [i, { sequences, promptTokens }] of task.samples.entries()) {
        const sums: number[] = [];
        for (const sequence of sequences) {
          const steps = await stepByStep(sequence, promptTokens, withLengths(attention, sequence.ids.length));
          sums.push(steps.reduce((a, b) => a + b, 0));
        }
        expect(scores[i]).toBe(Number((sums[0] as number) >= (sums[1] as number)));
      }
    });

    it("measures how far it is from the whole model", async () => {
      expect((await evaluate(generation, "kl", attention)).value).toBeGreaterThan(1e-4);
    });

    it("runs texts at once", async () => {
      const text = parseTask("some words that go on for a while ".repeat(6), "t.txt");
      if (text.form !== "text") throw new Error("expected a text");
      const { positions } = await evaluatePositions({
        runner,
        tokenizer,
        task: text,
        length: 80,
        parts: 4,
        attention,
      });
      const all = await runner.run({
        sequences: [tokenizer.encode(text.samples[0]?.text.slice(0, 79) ?? "")],
        positions: [Int32Array.from({ length: 79 }, (_, i) => i)],
        targets: [tokenizer.encode(text.samples[0]?.text.slice(1, 80) ?? "")],
        attention: withLengths(attention, 79),
      });
      const part = all.targetLogProbs?.slice(59, 79) ?? new Float32Array(0);
      const expected = Math.exp(-part.reduce((a, b) => a + b, 0) / part.length);
      expect(positions[3]).toMatchObject({ from: 60, to: 80 });
      // Two windows, of which the first is this one.
      const one = await evaluatePositions({
        runner,
        tokenizer,
        task: text,
        length: 80,
        parts: 4,
        limit: 1,
        attention,
      });
      expect(one.positions[3]?.value).toBeCloseTo(expected, 3);
    });
  },
);

describe.each(limits)("under %s", (_, attention) => {
  const write = async (prompt: string, maxTokens: number, limited: TextAttention | undefined) =>
    normalizeAnswer(
      (await generate(runner, tokenizer, prompt, { maxTokens, ...(limited && { attention: limited }) })).text,
    );

  it("judges what it would write", async () => {
    let differ = 0;
    const lines: { prompt: string; answer: string }[] = [];
    for (const { prompt } of samples) {
      const dense = await write(prompt, 10, undefined);
      const limited = await write(prompt, 10, attention);
      if (limited !== dense) differ++;
      lines.push(
        { prompt, answer: ` ${limited.slice(0, 4) || "a"}` },
        { prompt, answer: ` ${dense || "b"}` },
      );
    }
    expect(differ).toBeGreaterThan(0);
    const task = parseTask(lines.map((line) => JSON.stringify(line)).join("\n"), "w.jsonl");
    const encoded = encodeTask(task, { tokenizer, model });
    const f1 = await evaluate(task, "f1", attention);
    const exact = await evaluate(task, "exact-match", attention);
    for (const [i, { prompt, answer }] of lines.entries()) {
      const tokens = 2 * (encoded.samples[i]?.sequences[0]?.targets.length ?? 0) + 8;
      const written = await write(prompt, tokens, attention);
      expect(f1.scores[i]).toBeCloseTo(f1Score(written, answer.trim()), 12);
      expect(exact.scores[i]).toBe(Number(written === answer.trim()));
    }
  });
});
