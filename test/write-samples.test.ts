import { cpu } from "@coppice/backend-cpu";
import { reference } from "@coppice/backend-reference";
import { Rng, type Runner } from "@coppice/core";
import { type EncodedTask, writeSamples } from "@coppice/evaluate";
import { loadFixture } from "@coppice/plugin-kit/node";
import { describe, expect, it } from "vitest";

const endOfText = [2, 30, 60];
const lineBreaks = [10, ...Array.from({ length: 16 }, (_, i) => 120 + i)];
const seed = 11;
const wanted = 400;

/** Prompts of random tokens, some of them line breaks, that end with different ones: any line break may end a text. */
function randomTask(): EncodedTask {
  const rng = Rng.fromSeed(5);
  const samples = Array.from({ length: 6 }, (_, line) => {
    const words = Array.from({ length: 4 + rng.integer(14) }, () => 3 + rng.integer(27));
    const prompt = [...words, 10, 100 + line];
    const ids = Int32Array.from([...prompt, 77, 78]);
    const positions = Int32Array.of(ids.length - 3, ids.length - 2, ids.length - 1);
    const sequences = [{ ids, positions, targets: Int32Array.of(77, 78, 2) }];
    return { line: line + 1, sequences, promptTokens: prompt.length, gold: "" };
  });
  return {
    name: "random",
    form: "generation",
    samples,
    ending: new Set([...endOfText, ...lineBreaks]),
    endOfText: new Set(endOfText),
    endTokens: [2, 10],
    readsLogits: false,
  };
}

/** Whether a text is over: written from the definition, on all of its tokens at once. */
function isOver(text: readonly number[], fewest: number): boolean {
  const last = text.at(-1) as number;
  if (endOfText.includes(last)) return true;
  if (!lineBreaks.includes(last)) return false;
  return text.slice(0, -1).filter((token) => lineBreaks.includes(token)).length >= fewest;
}

/** One text after the other, each token from a forward pass over everything before it. */
async function naive(runner: Runner, task: EncodedTask): Promise<number[][]> {
  const rng = Rng.fromSeed(seed);
  const order = rng.shuffle([...task.samples]);
  const fewest = Math.min(
    ...task.samples.map(({ sequences, promptTokens }) => {
      const prompt = [...(sequences[0]?.ids ?? [])].slice(0, promptTokens);
      return prompt.filter((token) => lineBreaks.includes(token)).length;
    }),
  );
  const texts: number[][] = [];
  for (let i = 0; texts.flat().length < wanted && i < 10 * order.length; i++) {
    const { sequences, promptTokens } = order[i % order.length] as (typeof order)[number];
    const sample = [...(sequences[0]?.ids ?? [])];
    const text = sample.slice(0, 1 + rng.integer(Math.floor(promptTokens / 2)));
    const draws = Rng.fromSeed(rng.integer(Number.MAX_SAFE_INTEGER));
    do {
      const positions = [Int32Array.of(text.length - 1)];
      const { logits = [] } = await runner.run({ sequences: [Int32Array.from(text)], positions });
      const weights = Array.from(logits, Math.exp);
      const point = draws.uniform() * weights.reduce((a, b) => a + b, 0);
      let [token, sum] = [0, weights[0] as number];
      while (sum <= point) sum += weights[++token] as number;
      text.push(token);
    } while (!isOver(text, fewest) && text.length < sample.length + 1 + 8);
    texts.push(text);
  }
  return texts;
}

describe("writeSamples", () => {
  it.each([
    ["reference", reference],
    ["cpu", cpu],
  ])("equals a loop of whole forward passes on backend-%s", async (_, plugin) => {
    const { model, weights } = await loadFixture("mixtral");
    const backend = await plugin.create({}, undefined);
    await using runner = await backend.load({ model, weights });
    const task = randomTask();
    const { sequences } = await writeSamples({ runner, task, tokens: wanted, seed });
    const expected = await naive(runner, task);
    expect(sequences.map((ids) => [...ids])).toEqual(expected);
    // The case has texts that end in every way.
    const ends = expected.map((text) => text.at(-1) as number);
    for (const some of [endOfText, lineBreaks]) expect(ends.some((token) => some.includes(token))).toBe(true);
    expect(ends.some((token) => !task.ending.has(token))).toBe(true);
  });
});
