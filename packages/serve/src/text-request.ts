import type { ChatMessage } from "@coppice/evaluate";
import type { ModelTextOptions, Prompt } from "@coppice/runtime";
import * as v from "valibot";
import { ApiError } from "./api-error.js";

/** Bounds on what one request may ask for, besides the bytes of its body. */
export const requestLimits = {
  /** The API allows 4; each is looked for in every piece of text. */
  stopStrings: 16,
  /** Characters of one; text that might begin it is held back. */
  stopChars: 1000,
  /** Prompts of one completion request; they run one after the other. */
  prompts: 64,
} as const;

/** A request of either kind, checked. */
export interface TextRequest {
  readonly kind: "chat" | "completion";
  readonly model: string;
  /** One, except for completions of several prompts. */
  readonly prompts: readonly Prompt[];
  readonly options: ModelTextOptions;
  readonly stream: boolean;
  /** End a stream with the numbers of tokens. */
  readonly streamUsage: boolean;
}

const whole = v.pipe(v.number(), v.safeInteger());
const atLeastOne = v.pipe(whole, v.minValue(1));
const between = (least: number, most: number) => v.pipe(v.number(), v.minValue(least), v.maxValue(most));
const tokens = v.pipe(v.array(v.pipe(whole, v.minValue(0), v.maxValue(0x7fffffff))), v.minLength(1));
const stopString = v.pipe(v.string(), v.minLength(1), v.maxLength(requestLimits.stopChars));

const shared = {
  model: v.string(),
  stream: v.nullish(v.boolean(), false),
  stream_options: v.nullish(v.object({ include_usage: v.nullish(v.boolean(), false) })),
  max_tokens: v.nullish(atLeastOne),
  temperature: v.nullish(between(0, 2)),
  top_p: v.nullish(between(0, 1)),
  // These four are not OpenAI's own; they are named as in vLLM.
  top_k: v.nullish(v.pipe(whole, v.minValue(-1))),
  min_p: v.nullish(between(0, 1)),
  repetition_penalty: v.nullish(v.pipe(v.number(), v.gtValue(0), v.maxValue(100))),
  seed: v.nullish(whole),
  stop: v.nullish(v.union([stopString, v.pipe(v.array(stopString), v.maxLength(requestLimits.stopStrings))])),
};

const textPart = v.object({ type: v.literal("text"), text: v.string() });

const chatSchema = v.object({
  ...shared,
  max_completion_tokens: v.nullish(atLeastOne),
  messages: v.pipe(
    v.array(
      v.object({
        role: v.picklist(["system", "developer", "user", "assistant"]),
        content: v.union([v.string(), v.pipe(v.array(textPart), v.minLength(1))]),
      }),
    ),
    v.minLength(1),
  ),
});

const completionSchema = v.object({
  ...shared,
  prompt: v.union([
    v.string(),
    tokens,
    v.pipe(v.array(v.union([v.string(), tokens])), v.minLength(1), v.maxLength(requestLimits.prompts)),
  ]),
});

/** Fields of the API that this server has no use for, with the values that ask for nothing. Others are refused. */
const neutral: Readonly<Record<string, readonly unknown[]>> = {
  n: [1],
  best_of: [1],
  echo: [false],
  suffix: [""],
  logprobs: [false],
  top_logprobs: [0],
  frequency_penalty: [0],
  presence_penalty: [0],
  logit_bias: [{}],
  tools: [[]],
  tool_choice: ["none", "auto"],
  functions: [[]],
  function_call: ["none", "auto"],
  response_format: [{ type: "text" }],
  modalities: [["text"]],
  audio: [],
};

/** The default of completions in the API; chats run to the end of the context. */
const completionTokens = 16;

/** @throws ApiError 400 */
export function parseTextRequest(kind: TextRequest["kind"], body: unknown): TextRequest {
  if (typeof body !== "object" || body === null || Array.isArray(body)) {
    throw new ApiError(400, "the body is not a JSON object", { code: "invalid_json" });
  }
  for (const [name, value] of Object.entries(body)) {
    const allowed = Object.hasOwn(neutral, name) ? neutral[name] : undefined;
    if (!allowed || value === null || allowed.some((one) => JSON.stringify(one) === JSON.stringify(value)))
      continue;
    const only = allowed.length > 0 ? `; only ${JSON.stringify(allowed[0])} is` : "";
    throw new ApiError(400, `${name} is ${shown(value)}, which this server does not support${only}`, {
      param: name,
      code: "unsupported_value",
    });
  }
  if (kind === "chat") {
    const parsed = parse(chatSchema, body);
    return {
      ...sharedParts(parsed, parsed.max_completion_tokens ?? parsed.max_tokens ?? Number.MAX_SAFE_INTEGER),
      kind,
      prompts: [parsed.messages.map(toMessage)],
    };
  }
  const parsed = parse(completionSchema, body);
  const { prompt } = parsed;
  const prompts =
    typeof prompt === "string" ? [prompt] : isTokens(prompt) ? [prompt] : (prompt as (string | number[])[]);
  return {
    ...sharedParts(parsed, parsed.max_tokens ?? completionTokens),
    kind,
    prompts: prompts.map((one) => (typeof one === "string" ? one : Int32Array.from(one))),
  };
}

type Shared = v.InferOutput<v.ObjectSchema<typeof shared, undefined>>;

function sharedParts(parsed: Shared, maxTokens: number): Omit<TextRequest, "kind" | "prompts"> {
  const { model, stream, stream_options, temperature, top_p, top_k, min_p, repetition_penalty, seed, stop } =
    parsed;
  return {
    model,
    stream,
    streamUsage: stream_options?.include_usage ?? false,
    options: {
      maxTokens,
      ...(typeof temperature === "number" && { temperature }),
      // 0 asks for the most likely token alone.
      ...(typeof top_p === "number" && { topP: Math.max(top_p, Number.MIN_VALUE) }),
      ...(typeof top_k === "number" && top_k > 0 && { topK: top_k }),
      ...(typeof min_p === "number" && { minP: min_p }),
      ...(typeof repetition_penalty === "number" && { repetitionPenalty: repetition_penalty }),
      ...(typeof seed === "number" && { seed }),
      ...(stop !== null && stop !== undefined && { stop: typeof stop === "string" ? [stop] : stop }),
    },
  };
}

function toMessage({ role, content }: v.InferOutput<typeof chatSchema>["messages"][number]): ChatMessage {
  return {
    role: role === "developer" ? "system" : role,
    content: typeof content === "string" ? content : content.map(({ text }) => text).join(""),
  };
}

function isTokens(prompt: readonly unknown[]): prompt is number[] {
  return typeof prompt[0] === "number";
}

function parse<S extends v.GenericSchema>(schema: S, body: unknown): v.InferOutput<S> {
  const result = v.safeParse(schema, body, { abortEarly: true });
  if (result.success) return result.output;
  const [issue] = result.issues;
  const param = v.getDotPath(issue) ?? undefined;
  const message =
    issue.kind === "schema" && issue.received === "undefined" ? " is missing" : `: ${issue.message}`;
  throw new ApiError(400, `${param ?? "the body"}${message}`, {
    code: "invalid_value",
    ...(param !== undefined && { param }),
  });
}

function shown(value: unknown): string {
  const text = JSON.stringify(value);
  return text.length > 60 ? `${text.slice(0, 57)}...` : text;
}
