import { createPlan } from "@coppice/core";
import {
  encodeTask,
  evaluateTask,
  generate,
  judgeAnswer,
  normalizeAnswer,
  parseTask,
  scoreSamples,
  type Task,
} from "@coppice/evaluate";
import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { byteTokenizer } from "./byte-tokenizer.js";
import { fakeModel, scriptedRunner, sureRunner } from "./fake-runners.js";

const tokenizer = byteTokenizer({
  merges: [
    [" ", "1"],
    ["1", "2"],
    ["\n", "\n"],
    [" ", "\n"],
  ],
});
const model = fakeModel({ contextLength: 128 });

const task = (prompt: string, answer: string): Task =>
  parseTask(JSON.stringify({ prompt, answer }), "t.jsonl");

/** A model that answers with these tokens, whatever is asked, and then repeats the last. */
const answering = (promptTokens: number, answer: readonly number[]) =>
  sureRunner(model, (ids) => answer[Math.min(ids.length - promptTokens, answer.length - 1)] as number);

const byte = (text: string) => [...new TextEncoder().encode(text)].map((value) => value + 2);
const [end, spaceOne, twelve, newlines, spaceNewline] = [0, 258, 259, 260, 261] as const;

describe("exact match", () => {
  /** By teacher forcing; checked against plain generation, text against text. */
  const score = async (answer: string, written: readonly number[]) => {
    const encoded = encodeTask(task("p", answer), { tokenizer, model });
    const forced = answering(1, written);
    const options = { tokenizer, task: encoded };
    const text = await scoreSamples({ ...options, runner: forced, metric: "exact-match" });
    const tokens = await scoreSamples({ ...options, runner: forced, metric: "exact-match-tokens" });
    const generated = await generate(answering(1, written), tokenizer, "p", {
      stop: ["\n", "\r"],
      maxTokens: 40,
    });
    const right = generated.finish !== "length" && normalizeAnswer(generated.text) === answer.trim();
    expect(text.scores).toEqual([Number(right)]);
    return { text: text.scores[0], tokens: tokens.scores[0], runs: forced.requests.length - 1 };
  };

  it.each([
    ["as expected", " 12", [...byte(" "), twelve, end], { text: 1, tokens: 0 }],
    ["as encoded", " 12", [spaceOne, ...byte("2"), end], { text: 1, tokens: 1, runs: 1 }],
    ["ended by a newline", "12", [twelve, ...byte("\n")], { text: 1, tokens: 1, runs: 1 }],
    ["ended by two newlines in one token", "12", [twelve, newlines], { text: 1, tokens: 1, runs: 1 }],
    ["ended by space and newline", "12", [twelve, spaceNewline], { text: 1, tokens: 1, runs: 1 }],
    ["spelt with other tokens", "12", [...byte("12"), end], { text: 1, tokens: 0 }],
    ["with white space before it", "12", [...byte(" "), twelve, end], { text: 1, tokens: 0 }],
    ["with white space behind it", "12", [twelve, ...byte("  "), end], { text: 1, tokens: 0 }],
    ["another first token", "12", [...byte("3"), end], { text: 0, tokens: 0, runs: 1 }],
    ["too short", "123", [twelve, end], { text: 0, tokens: 0, runs: 1 }],
    ["too long", "12", [twelve, ...byte("3"), end], { text: 0, tokens: 0, runs: 1 }],
    ["a newline first", "12", [...byte("\n"), twelve, end], { text: 0, tokens: 0, runs: 1 }],
    ["never ending white space", "12", [twelve, ...byte(" ")], { text: 0, tokens: 0 }],
    ["an end at once", "12", [end], { text: 0, tokens: 0, runs: 1 }],
    ["half a character, then the rest", "€12", [...byte("€12"), end], { text: 1, tokens: 0 }],
    [
      "half a character, then another",
      "€x",
      [...byte("€").slice(0, 2), ...byte("a"), end],
      { text: 0, tokens: 0 },
    ],
    ["special tokens in between", "12", [...byte("1"), 1, ...byte("2"), end], { text: 1, tokens: 0 }],
  ])("%s", async (_, answer, written, expected) => {
    expect(await score(answer, written)).toMatchObject(expected);
  });

  it("is that of generation for any answer", async () => {
    const pieces = fc.array(fc.constantFrom(...byte("12 €x\n"), end, 1, twelve, spaceOne), {
      minLength: 1,
      maxLength: 6,
    });
    await fc.assert(
      fc.asyncProperty(fc.constantFrom("12", " 12", "1 2", "€x", "x€"), pieces, async (answer, written) => {
        await score(answer, [...written, end]);
      }),
      { numRuns: 300 },
    );
  });

  it("generates side by side, each sample to its own end", async () => {
    const lines = Array.from({ length: 12 }, (_, i) =>
      JSON.stringify({ prompt: `${i % 10}`.repeat(i + 1), answer: "121212" }),
    );
    const encoded = encodeTask(parseTask(lines.join("\n"), "t"), { tokenizer, model });
    // Sample i writes i digits of the answer, one by one, then ends.
    const runner = sureRunner(model, (ids) => {
      const digit = ids[0] as number;
      const prompt = ids.filter((id) => id === digit).length;
      return ids.length - prompt >= digit - 50 ? end : (byte("12")[(ids.length - prompt) % 2] as number);
    });
    const forced = await scoreSamples({ runner, tokenizer, task: encoded, metric: "exact-match" });
    expect(forced.scores.filter((score) => score === 1)).toHaveLength(1);
    expect(forced.samples[forced.scores.indexOf(1)]).toBe(6);
  });

  it("stops at the end of the context", async () => {
    const small = fakeModel({ contextLength: 6 });
    const encoded = encodeTask(task("pppp", "12"), { tokenizer, model: small });
    const runner = sureRunner(small, () => byte(" ")[0] as number);
    const result = await scoreSamples({ runner, tokenizer, task: encoded, metric: "exact-match" });
    expect(result.scores).toEqual([0]);
  });
});

describe("judgeAnswer", () => {
  it.each([
    ["", false, "open"],
    ["  ab", false, "open"],
    ["ab c", false, "open"],
    ["ab c ", false, "open"],
    ["ab  c", false, "wrong"],
    ["ab cd", false, "wrong"],
    ["a\ufffd", false, "open"],
    ["ab c", true, "right"],
    ["ab", true, "wrong"],
    ["ab c\nrest", false, "right"],
    ["ab c\rrest", false, "right"],
  ] as const)("%j, ended %s: %s", (text, ended, verdict) => {
    expect(judgeAnswer(text, ended, "ab c")).toBe(verdict);
  });

  it("keeps case and inner space", () => {
    expect(normalizeAnswer("  New  York \nx")).toBe("New  York");
  });
});

describe("evaluateTask", () => {
  it("measures F1 on what is generated", async () => {
    const runner = answering(1, [...byte(" red x\n")]);
    const { value, metric } = await evaluateTask({
      runner,
      tokenizer,
      task: task("p", " red car"),
      metric: "f1",
    });
    expect(metric).toBe("f1");
    expect(value).toBeCloseTo(0.5, 12);
  });

  it("measures choices by sum and per byte", async () => {
    const choices = parseTask('{"prompt":"p","choices":["aaaa","b"],"answer":0}', "c");
    // log p: a always 0.5, b 0.4: the sum favours b, the mean per byte a.
    const runner = scriptedRunner(model, () => {
      const row = new Float32Array(model.vocabSize).fill(-100);
      row[2 + 97] = Math.log(0.5);
      row[2 + 98] = Math.log(0.4);
      return row;
    });
    const of = async (metric: string) =>
      (await evaluateTask({ runner, tokenizer, task: choices, metric })).value;
    expect(await of("choice-accuracy")).toBe(0);
    expect(await of("choice-accuracy-per-byte")).toBe(1);
  });

  it("measures perplexity over tokens, and KL to the full model, also in parts", async () => {
    const text = parseTask('{"text":"aaaa"}\n{"text":"ab"}', "t.jsonl");
    const runner = scriptedRunner(model, (_, plan) => {
      const row = new Float32Array(model.vocabSize).fill(-100);
      row[2 + 97] = Math.log(plan ? 0.25 : 0.5);
      row[2 + 98] = Math.log(plan ? 0.75 : 0.5);
      return row;
    });
    const plan = createPlan(model, [{ layer: 1, experts: [0, 1] }]);
    const perplexity = await evaluateTask({ runner, tokenizer, task: text, plan });
    expect(perplexity.metric).toBe("perplexity");
    expect(perplexity.value).toBeCloseTo((4 ** 3 / 0.75) ** (1 / 4), 4);
    const kl = await evaluateTask({ runner, tokenizer, task: text, plan, metric: "kl" });
    expect(kl.value).toBeCloseTo(0.5 * Math.log(2) + 0.5 * Math.log(2 / 3), 5);
    expect((await evaluateTask({ runner, tokenizer, task: text, metric: "kl" })).value).toBe(0);
  });

  it("refuses what does not fit before it runs", async () => {
    const runner = answering(1, [end]);
    const long = task("p".repeat(200), "12");
    await expect(evaluateTask({ runner, tokenizer, task: long })).rejects.toMatchObject({
      code: "COPPICE_TASK_TOO_LONG",
      details: { line: 1, tokens: 201, context: 128 },
    });
    await expect(
      evaluateTask({ runner, tokenizer, task: task("p", "a"), metric: "perplexit" }),
    ).rejects.toMatchObject({ code: "COPPICE_TASK_METRIC" });
    const other = byteTokenizer();
    const tiny = answering(1, [end]);
    await expect(
      evaluateTask({
        runner: { ...tiny, model: { ...model, vocabSize: 50 } },
        tokenizer: other,
        task: task("p", "a"),
      }),
    ).rejects.toMatchObject({ code: "COPPICE_TOKENIZER" });
    expect(runner.requests).toHaveLength(0);
  });

  it("uses the chat template only when asked, and then drops the answer's leading space", async () => {
    const chatty = byteTokenizer({ chatTemplate: "<begin>{{ messages[0].content }}:" });
    const encode = (chat: boolean) =>
      encodeTask(task("hi", " yes "), { tokenizer: chatty, model, chat }).samples[0]?.sequences[0]?.ids;
    expect(chatty.decode(encode(false) ?? [], { special: true })).toBe("hi yes");
    expect(chatty.decode(encode(true) ?? [], { special: true })).toBe("<begin>hi:yes");
  });
});
