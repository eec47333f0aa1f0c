import { CoppiceError } from "@coppice/core";
import { Environment, Interpreter, parse, tokenize } from "@huggingface/jinja";

/**
 * Limits of chat templates, which come with a model and are not to be trusted. The interpreter runs no code of the
 * host language and sees nothing but the values given here; the limits keep a template from hanging the program.
 */
export const chatTemplateLimits = {
  /** Characters of a template: several times the longest that well-known models have. */
  sourceChars: 262_144,
  /** Time for one conversation; published templates need a few milliseconds. */
  milliseconds: 2_000,
  /** Numbers that one `range` may give; templates count messages and tools. */
  range: 100_000,
  /** Characters of any text a template builds, as long as a task line may be. */
  outputChars: 4_000_000,
} as const;

export interface ChatMessage {
  readonly role: "system" | "user" | "assistant";
  readonly content: string;
}

export interface ChatTemplate {
  render(messages: readonly ChatMessage[], tokens: Readonly<Record<string, string>>): string;
}

/**
 * @param file content of chat_template.jinja
 * @param config `chat_template` of tokenizer_config.json: text, or a list of `{ name, template }` of which
 * "default" is taken
 * @returns undefined when neither is given
 * @throws COPPICE_TOKENIZER
 */
export function createChatTemplate(file: string | undefined, config: unknown): ChatTemplate | undefined {
  const source = file ?? defaultTemplate(config);
  if (source === undefined) return undefined;
  if (source.length > chatTemplateLimits.sourceChars) {
    throw failure(`has ${source.length} characters; the limit is ${chatTemplateLimits.sourceChars}`);
  }
  let program: unknown;
  try {
    program = parse(tokenize(source, { lstrip_blocks: true, trim_blocks: true }));
  } catch (cause) {
    throw failure(`does not parse: ${message(cause)}`, cause);
  }
  return {
    render(messages, tokens) {
      try {
        const environment = new Environment();
        const values = { ...globals, ...tokens, messages, add_generation_prompt: true };
        for (const [name, value] of Object.entries(values)) environment.set(name, value);
        return String(boundedInterpreter(environment).run(program).value);
      } catch (cause) {
        throw failure(`failed: ${message(cause)}`, cause);
      }
    },
  };
}

/** What is used of the interpreter; the library's own types do not resolve under NodeNext. */
interface JinjaInterpreter {
  run(program: unknown): { readonly value: unknown };
  evaluate(node: unknown, environment: unknown): { readonly value: unknown };
  evaluateBlock(nodes: unknown, environment: unknown): { readonly value: unknown };
}

/** An interpreter that looks at the clock before every expression and every turn of a loop. */
function boundedInterpreter(environment: unknown): JinjaInterpreter {
  const interpreter: JinjaInterpreter = new Interpreter(environment);
  const deadline = performance.now() + chatTemplateLimits.milliseconds;
  for (const method of ["evaluate", "evaluateBlock"] as const) {
    const inner = interpreter[method].bind(interpreter);
    interpreter[method] = (node, scope) => {
      if (performance.now() > deadline) {
        throw new Error(`it takes more than ${chatTemplateLimits.milliseconds} milliseconds`);
      }
      const result = inner(node, scope);
      if (typeof result.value === "string" && result.value.length > chatTemplateLimits.outputChars) {
        throw new Error(
          `text of ${result.value.length} characters; the limit is ${chatTemplateLimits.outputChars}`,
        );
      }
      return result;
    };
  }
  return interpreter;
}

/**
 * What templates find besides the conversation. `strftime_now` is left out on purpose: templates that test for it
 * then use their fixed date, and prompts do not change from one day to the next.
 */
const globals = {
  true: true,
  false: false,
  none: null,
  True: true,
  False: false,
  None: null,
  range: boundedRange,
  raise_exception: (reason: unknown) => {
    throw new Error(String(reason));
  },
};

function defaultTemplate(config: unknown): string | undefined {
  if (config === undefined || config === null) return undefined;
  if (typeof config === "string") return config;
  const entries = Array.isArray(config) ? (config as unknown[]) : [];
  const named = entries.filter(
    (entry): entry is { name: string; template: string } =>
      typeof entry === "object" &&
      entry !== null &&
      "name" in entry &&
      "template" in entry &&
      typeof entry.name === "string" &&
      typeof entry.template === "string",
  );
  const found = named.find(({ name }) => name === "default");
  if (found) return found.template;
  throw failure(
    `of tokenizer_config.json is neither text nor a list with an entry "default"; it has ${
      named.map(({ name }) => name).join(", ") || "no usable entry"
    }`,
  );
}

function boundedRange(...values: unknown[]): number[] {
  const [first = 0, second, step = 1] = values.map(Number);
  const [start, stop] = second === undefined ? [0, first] : [first, second];
  const count = Math.max(0, Math.ceil((stop - start) / step));
  if (!(count <= chatTemplateLimits.range)) {
    throw new Error(`range of ${count} numbers; the limit is ${chatTemplateLimits.range}`);
  }
  return Array.from({ length: count }, (_, i) => start + i * step);
}

function failure(what: string, cause?: unknown): CoppiceError {
  return new CoppiceError(
    "COPPICE_TOKENIZER",
    `the chat template ${what}`,
    cause === undefined ? {} : { cause },
  );
}

function message(cause: unknown): string {
  return cause instanceof Error ? cause.message : String(cause);
}
