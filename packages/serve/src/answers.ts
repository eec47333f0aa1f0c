import { randomUUID } from "node:crypto";
import type { ModelText } from "@coppice/runtime";
import type { TextRequest } from "./text-request.js";

interface Usage {
  readonly prompt_tokens: number;
  readonly completion_tokens: number;
  readonly total_tokens: number;
  readonly prompt_tokens_details: { readonly cached_tokens: number };
}

/** Makes the objects that answer one request, in the forms of the API. */
export class Answers {
  readonly #request: TextRequest;
  readonly #head: Readonly<Record<string, unknown>>;

  constructor(request: TextRequest) {
    const { kind, stream, model } = request;
    this.#request = request;
    const object =
      kind === "completion" ? "text_completion" : stream ? "chat.completion.chunk" : "chat.completion";
    const id = `${kind === "chat" ? "chatcmpl" : "cmpl"}-${randomUUID().replaceAll("-", "")}`;
    this.#head = { id, object, created: Math.floor(Date.now() / 1000), model };
  }

  /** The whole answer, one choice per prompt. */
  whole(texts: readonly ModelText[]): object {
    const choices = texts.map((text, index) => ({
      index,
      ...(this.#request.kind === "chat"
        ? { message: { role: "assistant", content: text.text, refusal: null } }
        : { text: text.text }),
      logprobs: null,
      finish_reason: finishReason(text),
    }));
    return { ...this.#head, choices, usage: usageOf(texts) };
  }

  /** The begin of a streamed chat, before its text. */
  begin(index: number): object {
    return this.#chunk(index, { delta: { role: "assistant", content: "", refusal: null } }, null);
  }

  piece(index: number, text: string): object {
    return this.#chunk(index, this.#request.kind === "chat" ? { delta: { content: text } } : { text }, null);
  }

  /** The end of one choice. */
  end(index: number, text: ModelText): object {
    return this.#chunk(
      index,
      this.#request.kind === "chat" ? { delta: {} } : { text: "" },
      finishReason(text),
    );
  }

  /** The last chunk, where usage was asked for. */
  usage(texts: readonly ModelText[]): object {
    return { ...this.#head, choices: [], usage: usageOf(texts) };
  }

  #chunk(index: number, content: object, finish: string | null): object {
    return {
      ...this.#head,
      choices: [{ index, ...content, logprobs: null, finish_reason: finish }],
      ...(this.#request.streamUsage && { usage: null }),
    };
  }
}

function finishReason({ finish }: ModelText): "stop" | "length" {
  return finish === "length" ? "length" : "stop";
}

function usageOf(texts: readonly ModelText[]): Usage {
  const sum = (of: (text: ModelText) => number) => texts.reduce((total, text) => total + of(text), 0);
  const prompt = sum(({ promptTokens }) => promptTokens);
  const completion = sum(({ tokens }) => tokens.length);
  return {
    prompt_tokens: prompt,
    completion_tokens: completion,
    total_tokens: prompt + completion,
    prompt_tokens_details: { cached_tokens: sum(({ cachedTokens }) => cachedTokens) },
  };
}
