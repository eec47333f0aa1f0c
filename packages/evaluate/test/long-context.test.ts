import {
  encodeTask,
  evaluatePositions,
  evaluateTask,
  f1Score,
  factsTask,
  keywordScore,
  type LongContextTask,
  parseTask,
  retrievalTask,
  scoresByPlace,
  type Tokenizer,
} from "@coppice/evaluate";
import { describe, expect, it } from "vitest";
import { byteTokenizer } from "./byte-tokenizer.js";
import { demoTokenizer } from "./demo-files.js";
import { fakeModel, scriptedRunner, sureRunner } from "./fake-runners.js";

const bytes = byteTokenizer();
const demo = demoTokenizer();

/** Tokens of prompt and answer of every sample. */
function tokensOf({ task }: LongContextTask, tokenizer: Tokenizer): number[] {
  return task.samples.map(({ prompt, answer }) => tokenizer.encode(prompt + answer).length);
}

describe.each([
  ["a byte tokenizer", bytes],
  ["the demo tokenizer", demo],
])("with %s", (_, tokenizer) => {
  const model = fakeModel({ contextLength: 4096, vocabSize: 5000 });
  const options = { tokenizer, model, lengths: [512, 2048], depths: [0, 0.5, 1], samples: 3, seed: 7 };

  it.each([
    ["retrieval", retrievalTask(options)],
    ["facts", factsTask({ ...options, lengths: [1024, 2048] })],
  ])("fills the lengths of %s and no more", (_, made) => {
    tokensOf(made, tokenizer).forEach((tokens, i) => {
      const { length } = made.places[i] as { length: number };
      expect(tokens).toBeLessThanOrEqual(length);
      // One more line or sentence would not fit.
      expect(tokens).toBeGreaterThan(length - 80);
    });
    expect(encodeTask(made.task, { tokenizer, model }).samples).toHaveLength(18);
  });

  it("asks for the key at the depth, and all keys differ", () => {
    const { task, places } = retrievalTask(options);
    task.samples.forEach(({ prompt, answer }, i) => {
      const lines = prompt.split("\n").filter((line) => line.startsWith("The code for"));
      const keys = lines.map((line) => /^The code for (.+) is \d{5}\.$/.exec(line)?.[1]);
      expect(new Set(keys).size).toBe(lines.length);
      const asked = /What is the code for (.+)\?/.exec(prompt)?.[1];
      const at = keys.indexOf(asked);
      expect(at).toBe(Math.round((places[i]?.depth ?? 0) * (lines.length - 1)));
      expect(lines[at]).toBe(`The code for ${asked} is${answer}.`);
    });
  });

  it("gives other samples for another seed, and the same for the same", () => {
    expect(retrievalTask(options)).toEqual(retrievalTask(options));
    expect(factsTask(options)).toEqual(factsTask(options));
    const prompts = [1, 2, 2 ** 40].map(
      (seed) => retrievalTask({ ...options, seed }).task.samples[0]?.prompt,
    );
    expect(new Set(prompts).size).toBe(3);
  });
});

describe("facts", () => {
  const model = fakeModel({ contextLength: 8192 });
  const options = { tokenizer: bytes, model, lengths: [4096], depths: [0, 1], samples: 12, seed: 3 };

  it("hides the fact at the depth, and no other sentence answers the question", () => {
    const { task, places } = factsTask(options);
    task.samples.forEach(({ prompt, answer }, i) => {
      const [, passage = "", question = ""] = /^Passage: (.*)\nQuestion: (.*)\nAnswer:$/s.exec(prompt) ?? [];
      const name = /[A-Z][a-z]+ [A-Z][a-z]+(?= |\?)/.exec(question.replace(/^\w+ /, ""))?.[0] ?? "";
      expect(name).not.toBe("");
      const word = { eat: "likes to eat", born: "was born", job: "works as", work: "works as", own: "owns" };
      const key = Object.keys(word).find((part) => question.includes(part)) as keyof typeof word;
      const sentence = new RegExp(`${name} ${word[key]}[^.]*${answer.trim()}[^.]*\\.`);
      const found = passage.match(new RegExp(sentence, "g")) ?? [];
      expect(found).toHaveLength(1);
      expect(passage.match(new RegExp(`${name} ${word[key]}`, "g"))).toHaveLength(1);
      const place = passage.search(sentence) / passage.length;
      if (places[i]?.depth === 0) expect(place).toBe(0);
      else expect(place).toBeGreaterThan(0.8);
    });
  });

  it("adds the confusing facts that are asked for", () => {
    const count = (confusing: number) => {
      const { task } = factsTask({ ...options, confusing, samples: 1, depths: [0.5] });
      const people = /\b[A-Z][a-z]+ [A-Z][a-z]+ (?:works|was|likes|owns) /g;
      return task.samples[0]?.prompt.match(people)?.length;
    };
    expect([0, 1, 8, 30].map(count)).toEqual([1, 2, 9, 31]);
  });

  it("takes sentences of given texts", () => {
    const texts = parseTask('{"text": "It rained.  Was it cold? No!"}', "rain.jsonl");
    if (texts.form !== "text") throw new Error("expected texts");
    const { task } = factsTask({ ...options, texts, confusing: 0, samples: 1 });
    const passage = task.samples[0]?.prompt ?? "";
    for (const sentence of ["It rained.", "Was it cold?", "No!"]) expect(passage).toContain(sentence);
    expect(passage).not.toContain("There was a");
  });
});

describe("bad input", () => {
  const model = fakeModel({ contextLength: 256 });
  const options = { tokenizer: bytes, model, lengths: [256] };

  it.each([
    [{ lengths: [256, 512] }, "COPPICE_TASK_TOO_LONG", /512 .* 256/],
    [{ lengths: [] }, "COPPICE_USAGE", /0 lengths/],
    [{ lengths: [32] }, "COPPICE_USAGE", /32 tokens is too short .* have \d+/],
    [{ depths: [0, 1.5] }, "COPPICE_USAGE", /1\.5/],
    [{ depths: [] }, "COPPICE_USAGE", /0 depths/],
    [{ samples: 0 }, "COPPICE_USAGE", /samples/],
  ])("refuses %o", (change, code, message) => {
    expect(() => retrievalTask({ ...options, ...change })).toThrowError(
      expect.objectContaining({ code, message: expect.stringMatching(message) }),
    );
  });

  it("refuses keywords that are none", () => {
    const parse = (keywords: unknown) =>
      parseTask(JSON.stringify({ prompt: "a", answer: "b", keywords }), "k.jsonl");
    for (const wrong of ["b", [], [""], [1]]) expect(() => parse(wrong)).toThrow(/line 1 has keywords/);
    expect(parse(["b"]).samples[0]).toMatchObject({ keywords: ["b"] });
  });
});

describe("keyword score", () => {
  it("is 0 without the keywords, however much else overlaps", () => {
    const gold = "He works in Lisbon as a painter";
    expect(f1Score("He works in Madrid as a painter", gold)).toBeGreaterThan(0.8);
    expect(keywordScore("He works in Madrid as a painter", gold, ["Lisbon"])).toBe(0);
    expect(keywordScore("Lisbon", gold, ["Lisbon"])).toBeCloseTo(2 / 4, 12);
  });

  it("leaves common words out of the overlap", () => {
    expect(keywordScore("it is the painter of his", "painter", [])).toBe(1);
    expect(keywordScore("painter pilot", "painter")).toBeCloseTo(2 / 3, 12);
    // A fifth of the keywords is enough, less is not.
    expect(keywordScore("one x", "one two three four five")).toBeCloseTo(2 / 7, 12);
    expect(keywordScore("one x", "one two three four five six")).toBe(0);
  });

  it("scores generated answers of a task", async () => {
    const line = { prompt: "2+2", answer: " four", keywords: ["four"] };
    const task = parseTask(JSON.stringify(line), "sum.jsonl");
    const score = async (text: string) => {
      const ids = [...bytes.encode(`2+2${text}`), 0];
      const runner = sureRunner(fakeModel(), (seen) => ids[seen.length] ?? 0);
      return (await evaluateTask({ runner, tokenizer: bytes, task, metric: "keyword-score" })).value;
    };
    expect(await score(" four")).toBe(1);
    expect(await score(" it is four now")).toBeCloseTo(2 / 3, 12);
    expect(await score(" five")).toBe(0);
  });
});

describe("scores by place", () => {
  it("finds the depths that a model forgets", async () => {
    const model = fakeModel({ contextLength: 1024 });
    const lengths = [400, 800];
    const made = retrievalTask({ tokenizer: bytes, model, lengths, depths: [0, 0.5, 1], samples: 4 });
    const samples = encodeTask(made.task, { tokenizer: bytes, model }).samples;
    const expected = samples.map(({ sequences }) => [...(sequences[0]?.ids ?? []), 0]);
    // Knows everything but what stands in the first half of long prompts.
    const runner = sureRunner(model, (seen) => {
      const i = expected.findIndex((ids) => seen.every((id, at) => ids[at] === id));
      const { length = 0, depth = 1 } = made.places[i] ?? {};
      return length === 800 && depth < 0.6 ? 33 : (expected[i]?.[seen.length] ?? 0);
    });
    const score = await evaluateTask({ runner, tokenizer: bytes, task: made.task, metric: made.metric });
    const { cells, lengths: byLength } = scoresByPlace(score, made.places);
    expect(cells.map(({ length, depth, value, samples }) => [length, depth, value, samples])).toEqual([
      [400, 0, 1, 4],
      [400, 0.5, 1, 4],
      [400, 1, 1, 4],
      [800, 0, 0, 4],
      [800, 0.5, 0, 4],
      [800, 1, 1, 4],
    ]);
    expect(byLength.map(({ value, samples }) => [value, samples])).toEqual([
      [1, 12],
      [1 / 3, 12],
    ]);
    expect(byLength[1]?.low).toBeGreaterThan(0.1);
    expect(() => scoresByPlace(score, made.places.slice(1))).toThrow(/24 scores .* 23 places/);
  });
});

describe("perplexity by position", () => {
  const model = fakeModel({ contextLength: 64, vocabSize: 300 });
  /** The token before has probability p, and p rises with the position. */
  const chance = (position: number) => 0.1 + position / 100;
  const runner = scriptedRunner(model, (ids) => {
    const p = chance(ids.length);
    const logits = new Float32Array(model.vocabSize).fill(Math.log((1 - p) / (model.vocabSize - 1)));
    logits[ids.at(-1) as number] = Math.log(p);
    return logits;
  });
  const task = parseTask(`{"text": "${"a".repeat(150)}"}`, "a.jsonl");
  if (task.form !== "text") throw new Error("expected texts");

  it("is that of the tokens there", async () => {
    const scores = await evaluatePositions({ runner, tokenizer: bytes, task, length: 40, parts: 4 });
    expect(scores).toMatchObject({ length: 40, windows: 3 });
    expect(scores.positions.map(({ from, to, tokens }) => [from, to, tokens])).toEqual([
      [0, 10, 27],
      [10, 20, 30],
      [20, 30, 30],
      [30, 40, 30],
    ]);
    for (const { from, to, value, low, high } of scores.positions) {
      let [sum, count] = [0, 0];
      for (let at = Math.max(1, from); at < to; at++, count++) sum += Math.log(chance(at));
      expect(value).toBeCloseTo(Math.exp(-sum / count), 4);
      expect(low).toBeCloseTo(value, 4);
      expect(high).toBeCloseTo(value, 4);
    }
    const all = await evaluateTask({ runner, tokenizer: bytes, task, metric: "perplexity" });
    expect(all.value).not.toBeCloseTo(scores.value, 2);
    const limited = await evaluatePositions({ runner, tokenizer: bytes, task, length: 40, limit: 2 });
    expect(limited.windows).toBe(2);
  });

  it("refuses lengths that no text fills, or beyond the context", async () => {
    const short = parseTask('{"text": "abcdef"}', "short.jsonl") as typeof task;
    await expect(
      evaluatePositions({ runner, tokenizer: bytes, task: short, length: 40 }),
    ).rejects.toMatchObject({ code: "COPPICE_TASK_EMPTY", message: expect.stringMatching(/40 tokens.* 6/) });
    await expect(evaluatePositions({ runner, tokenizer: bytes, task, length: 65 })).rejects.toMatchObject({
      code: "COPPICE_TASK_TOO_LONG",
    });
  });
});
