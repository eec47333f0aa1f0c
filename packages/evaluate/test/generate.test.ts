import { createPlan, type Runner, type RunRequest, type TokenDraw } from "@coppice/core";
import {
  calibrationSequences,
  continuePrompts,
  encodeTask,
  generate,
  parseTask,
  type SamplingOptions,
} from "@coppice/evaluate";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { byteTokenizer } from "./byte-tokenizer.js";
import { drawingRunner, fakeModel, hiddenRunner, scriptedRunner, sureRunner } from "./fake-runners.js";

const tokenizer = byteTokenizer();
const model = fakeModel();
const byte = (text: string) => [...new TextEncoder().encode(text)].map((value) => value + 2);
const writing = (text: string) => {
  const tokens = [...byte(text), 0];
  return sureRunner(model, (ids) => tokens[ids.length - 1] as number);
};

describe("generate", () => {
  it("streams whole characters and ends at end-of-text", async () => {
    const parts: string[] = [];
    const result = await generate(writing("a €🌲!"), tokenizer, "p", {
      onToken: (_, text) => parts.push(text),
    });
    expect(result).toMatchObject({ text: "a €🌲!", finish: "end", promptTokens: 1 });
    expect(result.tokens).toHaveLength(10);
    expect(parts).toEqual(["a", " ", "", "", "€", "", "", "", "🌲", "!"]);
  });

  it("gives the same text whether or not anyone listens", async () => {
    expect((await generate(writing("abc"), tokenizer, "p")).text).toBe("abc");
  });

  it("stops at strings, and never shows their begin", async () => {
    const parts: string[] = [];
    const result = await generate(writing("one stone, END two"), tokenizer, "p", {
      stop: ["stop", "END"],
      onToken: (_, text) => parts.push(text),
    });
    expect(result).toMatchObject({ text: "one stone, ", finish: "stop" });
    expect(parts.join("")).toBe("one stone, ");
    expect((await generate(writing("a st"), tokenizer, "p", { stop: ["stop"] })).text).toBe("a st");
  });

  it("gives out whole characters and no part of a stop string, for any text and stop strings", async () => {
    const letters = fc.constantFrom("a", "b", "€", "🌲");
    const anyText = fc.array(letters, { maxLength: 12 }).map((parts) => parts.join(""));
    const stops = fc.array(fc.string({ unit: letters, minLength: 1, maxLength: 4 }), { maxLength: 3 });
    await fc.assert(
      fc.asyncProperty(anyText, stops, async (text, stop) => {
        // The text ends where a stop string is complete first, before the longest one that is.
        const characters = [...text];
        let expected = text;
        for (let count = 1; count <= characters.length; count++) {
          const begun = characters.slice(0, count).join("");
          const met = stop.filter((string) => begun.endsWith(string)).map(({ length }) => length);
          if (met.length === 0) continue;
          expected = begun.slice(0, begun.length - Math.max(...met));
          break;
        }
        const parts: string[] = [];
        const options = { stop, maxTokens: 60, onToken: (_: number, part: string) => parts.push(part) };
        const result = await generate(writing(text), tokenizer, "p", options);
        expect(result.text).toBe(expected);
        expect(parts.join("")).toBe(expected);
        for (const part of parts) expect(part).not.toMatch(/\p{Surrogate}/u);
      }),
      { numRuns: 200 },
    );
  });

  it("ends at its limits", async () => {
    expect(await generate(writing("abcdef"), tokenizer, "p", { maxTokens: 3 })).toMatchObject({
      text: "abc",
      finish: "length",
    });
    const endless = sureRunner(model, () => 2 + 97);
    const { tokens, finish } = await generate(endless, tokenizer, "p".repeat(60), { maxTokens: 100 });
    // 60 prompt tokens and 4 more fill the context of 64; one more is predicted there.
    expect([tokens.length, finish]).toEqual([5, "length"]);
  });

  it("samples by seed, from the nucleus", async () => {
    const three = scriptedRunner(model, () => {
      const row = new Float32Array(model.vocabSize).fill(-100);
      [0.6, 0.3, 0.1].forEach((p, i) => {
        row[2 + 97 + i] = Math.log(p);
      });
      return row;
    });
    const sample = async (options: object) =>
      (await generate(three, tokenizer, "p", { maxTokens: 60, temperature: 1, ...options })).text;
    const all = await sample({ seed: 4 });
    expect(await sample({ seed: 4 })).toBe(all);
    expect(await sample({ seed: 5 })).not.toBe(all);
    expect([...new Set(all)].sort()).toEqual(["a", "b", "c"]);
    expect([...new Set(await sample({ topP: 0.8 }))].sort()).toEqual(["a", "b"]);
    expect([...new Set(await sample({ topP: 0.6 }))]).toEqual(["a"]);
    expect([...new Set(await sample({ temperature: 0.01 }))]).toEqual(["a"]);
    const count = [
      ...(await generate(three, tokenizer, "p", { maxTokens: 63, temperature: 1, seed: 1 })).text,
    ];
    expect(count.filter((letter) => letter === "a").length).toBeGreaterThan(25);
  });

  it("has tokens drawn by runners that draw, and writes the same text", async () => {
    const rules: SamplingOptions[] = [
      { repetitionPenalty: 1.5 },
      { temperature: 0.9, seed: 3 },
      { temperature: 1.3, topP: 0.9, topK: 200, minP: 0.001, repetitionPenalty: 1.2, seed: 8 },
    ];
    for (const rule of rules) {
      const drawing = drawingRunner(hiddenRunner(model));
      const given: (RunRequest["draw"] | "none")[] = [];
      const watched: Runner = {
        ...drawing,
        run(request) {
          given.push(request.draw ?? "none");
          return drawing.run(request);
        },
      };
      const found = await generate(watched, tokenizer, "prompt", { maxTokens: 20, ...rule });
      const expected = await generate(hiddenRunner(model), tokenizer, "prompt", { maxTokens: 20, ...rule });
      expect(found.tokens).toEqual(expected.tokens);
      expect(found.tokens.length).toBeGreaterThan(5);
      expect(given).not.toContain("none");
      // What crosses to a device is the rule and no more.
      expect(Object.keys((given[0] as TokenDraw).rule).sort()).not.toContain("maxTokens");
    }
  });

  it("runs the plan, and equals decoding without a cache", async () => {
    const plan = createPlan(model, [{ layer: 1, experts: [0, 1] }]);
    const runner = hiddenRunner(model);
    const { tokens } = await generate(runner, tokenizer, "hello", { plan, maxTokens: 8 });
    const ids = [...byte("hello")];
    for (const token of tokens) {
      const { argmax } = await hiddenRunner(model).run({
        sequences: [Int32Array.from(ids)],
        positions: [Int32Array.of(ids.length - 1)],
        targets: [Int32Array.of(0)],
        plan,
      });
      expect(argmax?.[0]).toBe(token);
      ids.push(token);
    }
    expect(runner.requests.every((request) => request.plan === plan)).toBe(true);
  });

  it.each([
    [{ maxTokens: 0 }, "COPPICE_USAGE"],
    [{ temperature: -1 }, "COPPICE_USAGE"],
    [{ topP: 0 }, "COPPICE_USAGE"],
    [{ stop: [""] }, "COPPICE_USAGE"],
    [{ signal: AbortSignal.abort() }, "COPPICE_ABORTED"],
    [{ chat: true }, "COPPICE_TOKENIZER"],
  ])("refuses %j", async (options, code) => {
    await expect(generate(writing("a"), tokenizer, "p", options)).rejects.toMatchObject({ code });
  });

  it("refuses prompts without tokens or beyond the context", async () => {
    await expect(generate(writing("a"), tokenizer, "")).rejects.toMatchObject({ code: "COPPICE_USAGE" });
    await expect(generate(writing("a"), tokenizer, "p".repeat(65))).rejects.toMatchObject({
      code: "COPPICE_TASK_TOO_LONG",
    });
  });
});

describe("text", () => {
  const text = "0123456789".repeat(10);
  const task = parseTask(JSON.stringify({ text }), "t.jsonl");

  it("is cut into windows in which every token that follows another is scored once", () => {
    const { samples } = encodeTask(task, { tokenizer, model, window: 30 });
    const scored = samples.flatMap(({ sequences }) => [...(sequences[0]?.targets ?? [])]);
    expect(samples.map(({ sequences }) => sequences[0]?.ids.length)).toEqual([29, 29, 29, 9]);
    expect(tokenizer.decode(scored)).toBe(text.replace(/(.{30})/g, "$1|").replace(/(^|\|)./g, ""));
    expect(encodeTask(task, { tokenizer, model, window: 30, limit: 2 }).samples).toHaveLength(2);
    expect(encodeTask(task, { tokenizer, model }).samples).toHaveLength(2);
  });

  it("scores every token when the tokenizer puts a begin token before it", () => {
    const begins = byteTokenizer({ config: { add_bos_token: true } });
    const { samples } = encodeTask(task, { tokenizer: begins, model, window: 31 });
    expect(samples.map(({ sequences }) => sequences[0]?.ids[0])).toEqual([1, 1, 1, 1]);
    expect(begins.decode(samples.flatMap(({ sequences }) => [...(sequences[0]?.targets ?? [])]))).toBe(text);
  });

  it("gives whole sequences for calibration", () => {
    const texts = calibrationSequences(task, { tokenizer, model, window: 40 });
    expect(texts.map((ids) => tokenizer.decode(ids)).join("")).toBe(text);
    const lines = '{"prompt":"q","choices":[" a"," b"],"answer":1}';
    expect(
      calibrationSequences(parseTask(lines, "c"), { tokenizer, model }).map((ids) => tokenizer.decode(ids)),
    ).toEqual(["q b"]);
    const long = parseTask(JSON.stringify({ prompt: "p".repeat(90), answer: "a" }), "l");
    expect(calibrationSequences(long, { tokenizer, model })[0]).toHaveLength(64);
  });
});

describe("continuePrompts", () => {
  const prompts = ["p", "one stone", "a €"].map((text) => Int32Array.from(byte(text)));

  it("writes behind each prompt what greedy generation writes", async () => {
    const runner = hiddenRunner(fakeModel({ endTokens: [7, 300] }));
    const together = await continuePrompts(runner, tokenizer, prompts, { maxTokens: 9 });
    for (const [i, prompt] of prompts.entries()) {
      const { tokens } = await generate(runner, tokenizer, prompt, { maxTokens: 9 });
      expect([...(together[i] as Int32Array)]).toEqual([...prompt, ...tokens]);
    }
  });

  it("ends before the end of a text, and with the context", async () => {
    const [ended] = await continuePrompts(writing("abc"), tokenizer, prompts.slice(0, 1));
    expect([...(ended as Int32Array)]).toEqual(byte("pabc"));
    const endless = sureRunner(model, () => 2 + 97);
    const [full] = await continuePrompts(endless, tokenizer, [new Int32Array(60).fill(5)]);
    expect(full).toHaveLength(64);
    await expect(continuePrompts(endless, tokenizer, prompts, { maxTokens: 0 })).rejects.toMatchObject({
      code: "COPPICE_USAGE",
    });
    const signal = AbortSignal.abort();
    await expect(continuePrompts(endless, tokenizer, prompts, { signal })).rejects.toMatchObject({
      code: "COPPICE_ABORTED",
    });
  });
});
