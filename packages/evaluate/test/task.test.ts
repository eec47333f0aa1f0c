import { isCoppiceError } from "@coppice/core";
import { checkDisjoint, limitTask, parseTask, sampleHash, splitTask, taskLimits } from "@coppice/evaluate";
import { describe, expect, it } from "vitest";
import { demoTask } from "./demo-files.js";

const thrown = (work: () => unknown): { code: string; message: string } => {
  try {
    work();
  } catch (error) {
    if (isCoppiceError(error)) return error;
    throw error;
  }
  throw new Error("nothing was thrown");
};

describe("parseTask", () => {
  it("reads the three forms", () => {
    expect(parseTask('{"prompt": "1 + 1 =", "answer": " 2", "id": 7}', "a.jsonl")).toEqual({
      name: "a.jsonl",
      form: "generation",
      samples: [{ line: 1, prompt: "1 + 1 =", answer: " 2" }],
    });
    expect(parseTask('{"prompt": "q", "choices": [" A", " B"], "answer": 1}', "c").samples).toEqual([
      { line: 1, prompt: "q", choices: [" A", " B"], answer: 1 },
    ]);
    expect(parseTask('{"text": "t"}', "t.jsonl")).toMatchObject({ form: "text", samples: [{ text: "t" }] });
    expect(parseTask("any\n{text", "t.TXT")).toMatchObject({
      form: "text",
      samples: [{ text: "any\n{text" }],
    });
  });

  it("takes a byte order mark, CRLF and blank lines, and keeps line numbers", () => {
    const task = parseTask(
      '\ufeff{"prompt":"a","answer":"b"}\r\n\r\n  \n{"prompt":"c","answer":"d"}\r\n\n',
      "x",
    );
    expect(task.samples).toEqual([
      { line: 1, prompt: "a", answer: "b" },
      { line: 4, prompt: "c", answer: "d" },
    ]);
  });

  it.each([
    ["{", "not JSON"],
    ["[1]", "expected an object"],
    ["null", "expected an object"],
    ['{"prompt": 5, "answer": "a"}', "prompt = 5"],
    ['{"prompt": "a"}', "answer = undefined"],
    ['{"__proto__": {"prompt": "a", "answer": "b"}}', "__proto__"],
    ['{"prompt": "", "answer": "a"}', "empty prompt"],
    ['{"prompt": "a", "answer": "  "}', "blank answer"],
    ['{"prompt": "a", "answer": "b\\nc"}', "several lines"],
    ['{"prompt": "a", "choices": [" A"], "answer": 0}', "choices"],
    ['{"prompt": "a", "choices": [" A", 2], "answer": 0}', "choices[1] = 2"],
    ['{"prompt": "a", "choices": [" A", " B"], "answer": 2}', "answer = 2"],
    ['{"prompt": "a", "choices": [" A", " B"], "answer": "0"}', 'answer = "0"'],
    ['{"question": "a"}', "question"],
    ['{"text": "a"}', 'of the form "text"'],
  ])("refuses %s with its line number", (line, part) => {
    const error = thrown(() => parseTask(`{"prompt":"ok","answer":"ok"}\n${line}\n`, "f.jsonl"));
    expect(error.code).toBe("COPPICE_TASK_LINE");
    expect(error.message).toContain("f.jsonl: line 2");
    expect(error.message).toContain(part);
  });

  it("refuses empty files, and lines beyond the limit", () => {
    expect(thrown(() => parseTask("", "e.jsonl")).code).toBe("COPPICE_TASK_EMPTY");
    expect(thrown(() => parseTask(" \n\r\n", "e.jsonl")).code).toBe("COPPICE_TASK_EMPTY");
    expect(thrown(() => parseTask("  ", "e.txt")).code).toBe("COPPICE_TASK_EMPTY");
    const long = `{"text": "${"x".repeat(taskLimits.lineChars)}"}`;
    expect(thrown(() => parseTask(long, "l")).message).toContain(String(taskLimits.lineChars));
  });

  it("limits samples", () => {
    const task = parseTask('{"text":"a"}\n{"text":"b"}', "t");
    expect(limitTask(task, 1).samples).toHaveLength(1);
    expect(limitTask(task, 5)).toBe(task);
    expect(thrown(() => limitTask(task, 0)).code).toBe("COPPICE_USAGE");
  });
});

describe("splits", () => {
  const task = parseTask(
    Array.from({ length: 50 }, (_, i) => JSON.stringify({ prompt: `q${i % 40}`, answer: `${i}` })).join("\n"),
    "s.jsonl",
  );

  it("sets aside a share, repeatably, with equal questions on one side", () => {
    const { search, holdout } = splitTask(task, { share: 0.3, seed: 1 });
    expect(search.samples.length + holdout.samples.length).toBe(50);
    expect(Math.abs(holdout.samples.length - 15)).toBeLessThanOrEqual(1);
    expect(() => checkDisjoint(search, holdout)).not.toThrow();
    expect(splitTask(task, { share: 0.3, seed: 1 })).toEqual({ search, holdout });
    expect(splitTask(task, { share: 0.3, seed: 2 }).holdout).not.toEqual(holdout);
    expect(search.samples.map(({ line }) => line)).toEqual(
      search.samples.map(({ line }) => line).sort((a, b) => a - b),
    );
  });

  it("refuses to split what cannot be split", () => {
    const one = parseTask('{"prompt":"a","answer":"b"}\n{"prompt":"a","answer":"c"}', "o");
    expect(thrown(() => splitTask(one, { share: 0.5, seed: 0 })).code).toBe("COPPICE_TASK_EMPTY");
    expect(thrown(() => splitTask(task, { share: 1, seed: 0 })).code).toBe("COPPICE_USAGE");
  });

  it("finds shared questions, with counts and lines", () => {
    const error = thrown(() =>
      checkDisjoint(task, parseTask('{"prompt":"new","answer":"1"}\n{"prompt":"q7 ","answer":"x"}', "h")),
    );
    expect(error).toMatchObject({
      code: "COPPICE_TASK_OVERLAP",
      details: { shared: 1, holdout: 2, search: 50, example: { holdout: 2 } },
    });
  });

  it("hashes content, not place", () => {
    const [a, b, c] = parseTask(
      '{"prompt":"p","answer":"a"}\n{"answer":"a ","prompt":"p"}\n{"prompt":"p","answer":"b"}',
      "h",
    ).samples.map(sampleHash);
    expect(a).toBe(b);
    expect(a).not.toBe(c);
  });

  it("holds for the shipped tasks", () => {
    expect(() => checkDisjoint(demoTask("arith", "search"), demoTask("arith", "dev"))).not.toThrow();
  });
});
