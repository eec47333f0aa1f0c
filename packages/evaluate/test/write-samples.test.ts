import { Rng, RunEmitter } from "@coppice/core";
import { type EncodedTask, encodeTask, parseTask, writeSamples } from "@coppice/evaluate";
import { describe, expect, it } from "vitest";
import { byteTokenizer } from "./byte-tokenizer.js";
import { drawingRunner, type FakeRunner, fakeModel, hiddenRunner, sureRunner } from "./fake-runners.js";

const model = fakeModel();
const lines = (samples: readonly object[]) => samples.map((sample) => JSON.stringify(sample)).join("\n");
const encoded = (samples: readonly object[], options: Parameters<typeof byteTokenizer>[0] = {}) =>
  encodeTask(parseTask(lines(samples), "t.jsonl"), { tokenizer: byteTokenizer(options), model });
const decode = (ids: Int32Array) => byteTokenizer().decode([...ids]);
/** Goes on with what stands at this place of a text, whatever was written before. */
const dictating = (text: string) => {
  const tokens = [...new TextEncoder().encode(text)].map((byte) => byte + 2);
  return sureRunner(model, (ids) => tokens[ids.length] ?? 0);
};
const texts = async (runner: FakeRunner, task: EncodedTask) =>
  (await writeSamples({ runner, task, tokens: 1 })).sequences.map(decode);

const sums = Array.from({ length: 20 }, (_, i) => ({ prompt: `sum ${i} + ${7 * i} =`, answer: ` ${8 * i}` }));

describe("writeSamples", () => {
  it("begins with a head of every sample in turn, from one token to half of the prompt", async () => {
    const task = encoded(sums);
    const { sequences } = await writeSamples({ runner: dictating(""), task, tokens: 1e6, seed: 3 });
    // The model ends every text at once, so a text is its head and the end.
    expect(sequences).toHaveLength(200);
    const heads = sequences.map((ids) => ids.slice(0, -1));
    const samples = task.samples.map(({ sequences, promptTokens }) =>
      [...(sequences[0]?.ids ?? [])].slice(0, promptTokens),
    );
    const half = (s: number) => Math.floor((samples[s]?.length ?? 0) / 2);
    const order = Rng.fromSeed(3).shuffle([...samples.keys()]);
    for (const [i, head] of heads.entries()) {
      const s = order[i % 20] as number;
      expect(samples[s]?.slice(0, head.length)).toEqual([...head]);
      expect(head.length).toBeGreaterThanOrEqual(1);
      expect(head.length).toBeLessThanOrEqual(half(s));
    }
    expect(new Set(heads.map(({ length }) => length)).size).toBe(Math.max(...order.map(half)));
  });

  it("has the same texts whatever is written besides, others for other seeds, and no more than wanted", async () => {
    const write = (tokens: number, seed = 1) =>
      writeSamples({ runner: hiddenRunner(model), task: encoded(sums), tokens, seed });
    const { sequences: many } = await write(1500);
    for (const tokens of [1, 40, 700]) {
      const { sequences } = await write(tokens);
      expect(sequences).toEqual(many.slice(0, sequences.length));
      const sizes = sequences.map(({ length }) => length);
      const sum = sizes.reduce((a, b) => a + b, 0);
      expect([sum >= tokens, sum - (sizes.at(-1) ?? 0) < tokens]).toEqual([true, true]);
    }
    const drawing = drawingRunner(hiddenRunner(model));
    const drawn = await writeSamples({ runner: drawing, task: encoded(sums), tokens: 700, seed: 1 });
    expect(drawn.sequences).toEqual(many.slice(0, drawn.sequences.length));
    expect((await write(40, 2)).sequences).not.toEqual((await write(40)).sequences);
  });

  it("ends at a line break behind the words that all prompts end with", async () => {
    const task = encoded(sums);
    expect(await texts(dictating("sum 1\n2 = 13\nsum"), task)).toEqual(["sum 1\n2 = 13\n"]);
    expect(await texts(dictating("sum 1\n2\n13\n"), task)).toEqual([
      expect.stringMatching(/^sum 1\n2\n13\n/),
    ]);
  });

  it("goes on at line breaks that every prompt has", async () => {
    const facts = (count: number) => Array.from({ length: count }, (_, i) => `f: ${i + count}\n`).join("");
    const task = encoded([4, 5].map((count) => ({ prompt: `${facts(count)}Answer:`, answer: " 1" })));
    for (const text of [
      "k: 1\nk: 2\nk: 3\nk: 4\nAnswer: 5\n",
      // The model gives an answer before it has as many lines as a prompt.
      "k: 1\nk: 2\nk: 3\nAnswer: 5\nAnswer: 6\n",
    ]) {
      const { sequences } = await writeSamples({ runner: dictating(`${text}more`), task, tokens: 300 });
      // Heads have at most 16 tokens.
      for (const ids of sequences) expect(decode(ids).slice(16)).toBe(text.slice(16));
    }
  });

  it("ends at end-of-text, but not at one between the turns of a chat", async () => {
    const task = encoded(sums);
    expect(await texts(dictating("sum 4"), task)).toEqual(["sum 4"]);
    const chat = encodeTask(parseTask(lines(sums), "t.jsonl"), {
      tokenizer: byteTokenizer({
        chatTemplate: "{% for m in messages %}U{{ m.content }}<end>{% endfor %}A:",
      }),
      model,
      chat: true,
    });
    const reply = [..."A: 3"].map((letter) => letter.charCodeAt(0) + 2);
    const runner = sureRunner(model, (ids) => {
      const turn = ids.indexOf(0);
      return turn < 0 ? 0 : (reply[ids.length - 1 - turn] ?? 0);
    });
    const { sequences } = await writeSamples({ runner, task: chat, tokens: 1 });
    expect([...(sequences[0] ?? [])].slice(-6)).toEqual([0, ...reply, 0]);
  });

  it("ends a little beyond the length of the sample, and with the context", async () => {
    const endless = sureRunner(model, () => 99);
    const { sequences } = await writeSamples({ runner: endless, task: encoded(sums.slice(3, 4)), tokens: 1 });
    expect(sequences[0]).toHaveLength("sum 3 + 21 = 24".length + 1 + 8);
    const long = encoded([{ prompt: "p".repeat(60), answer: "a" }]);
    expect((await writeSamples({ runner: endless, task: long, tokens: 1 })).sequences[0]).toHaveLength(64);
  });

  it("writes texts and choices", async () => {
    const text = parseTask(lines([{ text: "one line\nand another, of some length" }]), "t.jsonl");
    const task = encodeTask(text, { tokenizer: byteTokenizer(), model });
    expect(await texts(dictating("one line\nand another,\n\nno more"), task)).toEqual([
      "one line\nand another,\n\nno more",
    ]);
    for (const choices of [
      [" a", " bcd"],
      ["a", "b"],
    ]) {
      const asked = encoded([{ prompt: "which letter?", choices, answer: 1 }]);
      const { sequences } = await writeSamples({
        runner: sureRunner(model, () => 99),
        task: asked,
        tokens: 1,
      });
      // The choice is the end: no end-of-text is scored behind it.
      expect(sequences[0]).toHaveLength(13 + (choices[1]?.length ?? 0) + 8);
    }
  });

  it("counts its work and tells how far it is", async () => {
    const emitter = new RunEmitter();
    const seen: number[] = [];
    emitter.on("progress", ({ done, total, unit }) => {
      expect([total, unit]).toEqual([500, "tokens"]);
      seen.push(done);
    });
    const runner = hiddenRunner(model);
    const { work } = await writeSamples({ runner, task: encoded(sums), tokens: 500, emitter });
    expect(seen.at(-1)).toBe(500);
    const ran = runner.requests.flatMap(({ sequences }) => sequences.map(({ length }) => length));
    expect(work.tokenLayers).toBe(ran.reduce((a, b) => a + b, 0) * model.layers.length);
  });

  it("stops when told to", async () => {
    const stop = new AbortController();
    const runner = hiddenRunner(model);
    const run = runner.run.bind(runner);
    let runs = 0;
    const stopping: FakeRunner = {
      ...runner,
      run: (request) => {
        if (++runs === 3) stop.abort();
        return run(request);
      },
    };
    const task = encoded(sums);
    await expect(writeSamples({ runner: stopping, task, signal: stop.signal })).rejects.toMatchObject({
      code: "COPPICE_ABORTED",
    });
    expect(runs).toBe(3);
  });

  it.each([{ tokens: 0 }, { tokens: 1.5 }, { seed: 0.5 }])("refuses %j", async (options) => {
    const task = encoded(sums);
    await expect(writeSamples({ runner: dictating(""), task, ...options })).rejects.toMatchObject({
      code: "COPPICE_USAGE",
    });
  });
});
