import { CoppiceError, checkWholeNumber } from "@coppice/core";

/** Limits of the task parser; each exists so that a wrong or hostile file fails with a message, not with memory. */
export const taskLimits = {
  /** Characters of a file. Beyond it a JavaScript string itself comes near its limit (512 Mi). */
  fileChars: 256 * 1024 * 1024,
  /** Characters of a line: a million tokens of four characters, more than any context that models have. */
  lineChars: 4_000_000,
  /** Samples of a file: a hundred times the largest task that is evaluated in practice. */
  samples: 1_000_000,
  /** Choices of a sample; each may cost a forward pass. */
  choices: 1_000,
  /** Keywords of an answer, which is one line. */
  keywords: 1_000,
} as const;

export interface GenerationSample {
  /** Line of the file, from 1. */
  readonly line: number;
  readonly prompt: string;
  /** One line of text; it ends at end-of-text or a newline. White space at its end carries no meaning. */
  readonly answer: string;
  /** What a right answer cannot do without, for the metric `keyword-score`. */
  readonly keywords?: readonly string[];
}

export interface ChoicesSample {
  readonly line: number;
  readonly prompt: string;
  readonly choices: readonly string[];
  /** Index of the right choice. */
  readonly answer: number;
}

export interface TextSample {
  readonly line: number;
  readonly text: string;
}

interface TaskOf<F extends string, S> {
  /** For messages, usually the file name. */
  readonly name: string;
  readonly form: F;
  readonly samples: readonly S[];
}

export type GenerationTask = TaskOf<"generation", GenerationSample>;
export type ChoicesTask = TaskOf<"choices", ChoicesSample>;
export type TextTask = TaskOf<"text", TextSample>;

/** Samples of one form, in file order. */
export type Task = GenerationTask | ChoicesTask | TextTask;
export type TaskForm = Task["form"];
export type Sample = Task["samples"][number];

/**
 * Reads a task file.
 *
 * JSON lines, all of one form: `{"prompt", "answer": " text"}` (generation, with optional `"keywords": [..]`), `{"prompt", "choices": [..],
 * "answer": index}` (choices) or `{"text"}` (text). Other keys are ignored. When `name` ends in `.txt` the whole
 * file is one text. A byte order mark, CRLF and blank lines are fine.
 *
 * @throws COPPICE_TASK_LINE with the line number, COPPICE_TASK_EMPTY
 */
export function parseTask(text: string, name: string): Task {
  if (text.length > taskLimits.fileChars) {
    throw new CoppiceError(
      "COPPICE_TASK_LINE",
      `${name} has ${text.length} characters, more than the limit of ${taskLimits.fileChars}`,
      { hint: "split the file; evaluations take a few thousand samples at most" },
    );
  }
  const body = text.charCodeAt(0) === 0xfeff ? text.slice(1) : text;
  if (name.toLowerCase().endsWith(".txt")) {
    if (body.trim() === "") throw empty(name);
    return { name, form: "text", samples: [{ line: 1, text: body }] };
  }
  let form: TaskForm | undefined;
  let firstLine = 0;
  const samples: Sample[] = [];
  let line = 0;
  for (let begin = 0; begin <= body.length; ) {
    let end = body.indexOf("\n", begin);
    if (end < 0) end = body.length;
    const raw = body.slice(begin, end);
    begin = end + 1;
    line++;
    if (raw.trim() === "") continue;
    const parsed = parseLine(raw, line, name);
    if (form === undefined) {
      form = parsed.form;
      firstLine = line;
    } else if (form !== parsed.form) {
      throw badLine(
        name,
        line,
        `is of the form "${parsed.form}"; line ${firstLine} is of the form "${form}"`,
        { hint: "put samples of different forms into different files" },
      );
    }
    if (samples.length === taskLimits.samples) {
      throw badLine(name, line, `exceeds the limit of ${taskLimits.samples} samples in a file`);
    }
    samples.push(parsed.sample);
  }
  if (form === undefined) throw empty(name);
  return { name, form, samples } as Task;
}

/** The first `limit` samples; the task itself when there are no more. Undefined keeps all. */
export function limitTask<T extends Task>(task: T, limit: number | undefined): T {
  if (limit === undefined || limit >= task.samples.length) return task;
  return { ...task, samples: task.samples.slice(0, checkWholeNumber("limit", limit)) };
}

function parseLine(raw: string, line: number, name: string): { form: TaskForm; sample: Sample } {
  if (raw.length > taskLimits.lineChars) {
    throw badLine(name, line, `has ${raw.length} characters, more than the limit of ${taskLimits.lineChars}`);
  }
  let value: unknown;
  try {
    value = JSON.parse(raw);
  } catch (cause) {
    throw badLine(name, line, `is not JSON: ${show(raw)}`, { cause, hint: expectedForms });
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw badLine(name, line, `is ${show(value)}, expected an object`, { hint: expectedForms });
  }
  const has = (key: string) => Object.hasOwn(value, key);
  const record = value as Record<string, unknown>;
  const string = (key: string): string => {
    const field = has(key) ? record[key] : undefined;
    if (typeof field !== "string") {
      throw badLine(name, line, `has ${key} = ${show(field)}, expected a string`, { hint: expectedForms });
    }
    if (field === "") throw badLine(name, line, `has an empty ${key}`);
    return field;
  };
  if (has("choices")) {
    return {
      form: "choices",
      sample: { line, prompt: string("prompt"), ...parseChoices(record, line, name) },
    };
  }
  if (has("prompt")) {
    const prompt = string("prompt");
    const answer = string("answer");
    if (answer.trim() === "") throw badLine(name, line, `has the blank answer ${show(answer)}`);
    if (/[\n\r]/.test(answer.trimEnd())) {
      throw badLine(name, line, `has an answer of several lines: ${show(answer)}`, {
        hint: "an answer ends at the first newline; put everything before it into the prompt",
      });
    }
    const keywords = has("keywords") ? parseKeywords(record["keywords"], line, name) : undefined;
    return { form: "generation", sample: { line, prompt, answer, ...(keywords && { keywords }) } };
  }
  if (has("text")) return { form: "text", sample: { line, text: string("text") } };
  throw badLine(name, line, `has the keys ${show(Object.keys(record))}`, { hint: expectedForms });
}

function parseKeywords(value: unknown, line: number, name: string): readonly string[] {
  const fits =
    Array.isArray(value) &&
    value.length > 0 &&
    value.length <= taskLimits.keywords &&
    value.every((word) => typeof word === "string" && word.trim() !== "");
  if (fits) return value as string[];
  throw badLine(
    name,
    line,
    `has keywords = ${show(value)}, expected an array of 1 to ${taskLimits.keywords} strings that are not blank`,
  );
}

function parseChoices(record: Record<string, unknown>, line: number, name: string) {
  const { choices, answer } = record;
  if (!Array.isArray(choices) || choices.length < 2 || choices.length > taskLimits.choices) {
    throw badLine(
      name,
      line,
      `has choices = ${show(choices)}, expected an array of 2 to ${taskLimits.choices} strings`,
    );
  }
  choices.forEach((choice, i) => {
    if (typeof choice !== "string" || choice === "") {
      throw badLine(name, line, `has choices[${i}] = ${show(choice)}, expected a string that is not empty`);
    }
  });
  if (!Number.isSafeInteger(answer) || (answer as number) < 0 || (answer as number) >= choices.length) {
    throw badLine(
      name,
      line,
      `has answer = ${show(answer)}, expected the index of a choice, 0 to ${choices.length - 1}`,
    );
  }
  return { choices: choices as string[], answer: answer as number };
}

const expectedForms =
  'write {"prompt": "...", "answer": " ..."}, {"prompt": "...", "choices": [" A", " B"], "answer": 0} or {"text": "..."}, one per line';

function badLine(
  name: string,
  line: number,
  what: string,
  more: { hint?: string; cause?: unknown } = {},
): CoppiceError {
  return new CoppiceError("COPPICE_TASK_LINE", `${name}: line ${line} ${what}`, {
    details: { name, line },
    ...more,
  });
}

function empty(name: string): CoppiceError {
  return new CoppiceError("COPPICE_TASK_EMPTY", `${name} holds no samples; expected at least one`, {
    hint: expectedForms,
    details: { name },
  });
}

function show(value: unknown): string {
  const text = JSON.stringify(value) ?? String(value);
  return text.length > 80 ? `${text.slice(0, 77)}...` : text;
}
